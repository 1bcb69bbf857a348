// Package browser runs a headless Chromium for the tests of the page and for its
// screenshots.
package browser

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/cdproto/memory"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// ErrNone says that this machine has no Chromium.
var ErrNone = errors.New("no chromium, chromium-browser or google-chrome in PATH")

// Find returns the path of the system's Chromium, or ErrNone.
func Find() (string, error) {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", ErrNone
}

// Start starts the Chromium at path, with a profile of its own, and returns its first tab.
// cancel ends it, as the end of ctx does.
func Start(ctx context.Context, path string) (tab context.Context, cancel context.CancelFunc, err error) {
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.WSURLReadTimeout(time.Minute), // a busy machine starts it slowly
		chromedp.NoSandbox,                     // for root and for containers. It opens the project's own page only
		chromedp.DisableGPU,
		chromedp.Flag("disable-component-update", true),
	)
	allocator, cancelAllocator := chromedp.NewExecAllocator(ctx, options...)
	tab, cancelTab := chromedp.NewContext(allocator)
	cancel = func() {
		cancelTab()
		cancelAllocator()
	}
	if err := chromedp.Do(tab); err != nil {
		cancel()
		return nil, nil, fmt.Errorf("start %s: %w", path, err)
	}
	return tab, cancel, nil
}

// Screen is a size of the browser's window.
type Screen struct {
	Name          string
	Width, Height int64
	Scale         float64 // device pixels for each CSS pixel
	Mobile        bool
}

// The screens for which the page is tested and shown.
var (
	Desktop   = Screen{Name: "desktop", Width: 1440, Height: 900, Scale: 1}
	Phone     = Screen{Name: "phone", Width: 390, Height: 844, Scale: 2, Mobile: true}
	Small     = Screen{Name: "small", Width: 360, Height: 640, Scale: 1, Mobile: true}
	Projector = Screen{Name: "projector", Width: 1920, Height: 1080, Scale: 1}
)

// Themes are the color schemes of the page.
var Themes = []string{"light", "dark"}

// Show sets the screen and the color scheme of a tab. It ends ReduceMotion.
func Show(tab context.Context, s Screen, theme string) error {
	return chromedp.Do(tab, func(ctx context.Context, t *chromedp.Target) (none chromedp.Void, err error) {
		_, err = cdp.Call(ctx, t, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: s.Width, Height: s.Height, DeviceScaleFactor: s.Scale, Mobile: s.Mobile,
		})
		if err != nil {
			return none, err
		}
		return none, emulate(ctx, t, "prefers-color-scheme", theme)
	})
}

// ReduceMotion makes a tab prefer reduced motion.
func ReduceMotion(tab context.Context) error {
	return chromedp.Do(tab, func(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
		return chromedp.Void{}, emulate(ctx, t, "prefers-reduced-motion", "reduce")
	})
}

// emulate sets one feature of CSS media queries, and no others.
func emulate(ctx context.Context, t *chromedp.Target, name, value string) error {
	_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: name, Value: value}},
	})
	return err
}

// Open loads a URL.
func Open(tab context.Context, url string) error {
	if err := chromedp.Do(tab, chromedp.Navigate(url)); err != nil {
		return fmt.Errorf("open %s: %w", url, err)
	}
	return nil
}

// Eval evaluates an expression in the page, and waits for its promise if it is one.
func Eval[T any](tab context.Context, expression string) (T, error) {
	value, err := chromedp.Run(tab, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
	if err != nil {
		return value, fmt.Errorf("evaluate %.200s: %w", expression, err)
	}
	return value, nil
}

// Await waits until an expression is true.
func Await(tab context.Context, expression string, timeout time.Duration) error {
	_, err := chromedp.Run(tab, chromedp.Poll[bool]("Boolean("+expression+")", chromedp.WithPollingInterval(50*time.Millisecond), chromedp.WithPollingTimeout(timeout)))
	if err != nil {
		return fmt.Errorf("wait %s for %.300s: %w", timeout, expression, err)
	}
	return nil
}

// Click clicks the element that a CSS selector finds.
func Click(tab context.Context, selector string) error {
	if err := chromedp.Do(tab, chromedp.Click(chromedp.CSS(selector))); err != nil {
		return fmt.Errorf("click %s: %w", selector, err)
	}
	return nil
}

// Memory is what a tab holds in memory after a garbage collection.
type Memory struct {
	Nodes     int64 // of the DOM, also those that are in no document
	Listeners int64 // of events
	Heap      int64 // bytes of JavaScript's heap
}

// Measure collects a tab's garbage, and returns what is left.
func Measure(tab context.Context) (Memory, error) {
	return chromedp.Run(tab, func(ctx context.Context, t *chromedp.Target) (m Memory, err error) {
		for range 3 { // what one collection finalizes, the next one frees
			if _, err = cdp.Call(ctx, t, heapprofiler.CollectGarbage, cdp.Empty{}); err != nil {
				return m, err
			}
		}
		dom, err := cdp.Call(ctx, t, memory.GetDOMCounters, cdp.Empty{})
		if err != nil {
			return m, err
		}
		heap, err := cdp.Call(ctx, t, runtime.GetHeapUsage, cdp.Empty{})
		return Memory{Nodes: dom.Nodes, Listeners: dom.JsEventListeners, Heap: int64(heap.UsedSize)}, err
	})
}

// Screenshot returns the visible part of the page as PNG.
func Screenshot(tab context.Context) ([]byte, error) {
	return chromedp.Run(tab, chromedp.CaptureScreenshot())
}

// Press presses a key, such as Tab.
func Press(tab context.Context, key string) error {
	return chromedp.Do(tab, chromedp.KeyEvent(keys[key]))
}

var keys = map[string]string{"Tab": kb.Tab, "Enter": kb.Enter}
