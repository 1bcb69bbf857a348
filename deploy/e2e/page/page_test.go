package page

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/page/browser"
)

// The page loads without an error, asks no other host for anything, shows each pod, and
// fits screens from a small phone to a projector.
func TestPage_LoadsOnEveryScreen(t *testing.T) {
	p := startPair(t)
	tab := newTab(t)
	open(t, tab, p.url)
	choose(t, tab, "via", "grpc")
	choose(t, tab, "rate", "20")
	await(t, tab, `document.querySelectorAll('.pod[data-state="ready"] .figures b').length >= 3`)
	for _, screen := range []browser.Screen{browser.Small, browser.Phone, browser.Desktop, browser.Projector} {
		require.NoError(t, browser.Show(tab, screen, "light"))
		await(t, tab, fmt.Sprintf(`innerWidth === %d && document.documentElement.scrollWidth <= innerWidth`, screen.Width))
	}
	hosts := eval[[]string](t, tab, `[...new Set(performance.getEntriesByType('resource').map((r) => new URL(r.name).origin))]`)
	assert.Equal(t, []string{eval[string](t, tab, `location.origin`)}, hosts)
}

// The page works below a path that a proxy cuts off.
func TestPage_WorksBelowAPrefix(t *testing.T) {
	p := startPair(t)
	proxy := servePrefix(t, "/tandem/", p.url)
	tab := newTab(t)
	open(t, tab, proxy+"/tandem/")
	click(t, tab, "#burst-send")
	await(t, tab, `document.getElementById('outcome').textContent.startsWith('200 calls over HTTP in ')`)
}

// The table and the picture show the counts of a burst that service-a counted itself.
func TestPage_BurstShowsServersCounts(t *testing.T) {
	p := startPair(t)
	for _, via := range []string{"http", "grpc", "grpc-service"} {
		t.Run(via, func(t *testing.T) {
			tab := newTab(t)
			open(t, tab, p.url)
			watchStreams(t, tab)
			choose(t, tab, "via", via)
			click(t, tab, "#burst-send")
			await(t, tab, `outcomes.length > 0`)
			pods := eval[map[string]int](t, tab, `outcomes[0].pods`)
			total := 0
			for pod, n := range pods {
				total += n
				await(t, tab, fmt.Sprintf(`[...document.querySelectorAll('#rows tr')].some((row) =>
					row.cells[0].textContent === %q && row.cells[3].textContent === %q && row.cells[4].textContent === '%d')`, pod, labels[via], n))
				await(t, tab, fmt.Sprintf(`document.querySelector('.pod[data-key=%q] .figures .%s b').textContent === '%d'`, pod, via, n))
			}
			assert.Equal(t, 200, total)
		})
	}
}

var labels = map[string]string{"http": "HTTP", "grpc": "gRPC", "grpc-service": "gRPC, Service"}

// Through the ClusterIP, all gRPC calls go to one pod; through the headless name, they
// spread. The page says so, and why.
func TestPage_SaysWherePinned(t *testing.T) {
	p := startPair(t)
	tab := newTab(t)
	open(t, tab, p.url)
	choose(t, tab, "via", "grpc")
	click(t, tab, "#burst-send")
	await(t, tab, `document.getElementById('lesson').textContent.startsWith('The 200 gRPC calls spread evenly over 3 pods')`)
	choose(t, tab, "via", "grpc-service")
	click(t, tab, "#burst-send")
	await(t, tab, `document.getElementById('lesson').textContent ===
		'All 200 gRPC calls went to one pod, because a ClusterIP picks a pod per connection and gRPC keeps one connection.'`)
	assert.Equal(t, 1, eval[int](t, tab, `document.querySelectorAll('.figures li.grpc-service').length`))
}

// A button makes a pod slow, failing or not ready, the page shows that, and heals it.
func TestPage_FaultShowsAndHeals(t *testing.T) {
	p := startPair(t)
	tab := newTab(t)
	open(t, tab, p.url)
	choose(t, tab, "via", "grpc")
	choose(t, tab, "rate", "50")
	const tile = `.pod[data-key="service-b-2"]`
	for _, fault := range []struct{ button, shows, lesson, heal string }{
		{"slow", "slow by 300ms", "service-b-2 is slow", "heal"},
		{"failing", "fails 50 %", "service-b-2 fails 50\u00a0% of its requests", "failing"}, // a second press
		{"notReady", "says not ready", "service-b-2 is not ready", "heal"},
	} {
		t.Run(fault.button, func(t *testing.T) {
			await(t, tab, `document.querySelector('`+tile+` .faults .`+fault.button+`:enabled')?.getAttribute('aria-pressed') === 'false'`)
			click(t, tab, tile+" .faults ."+fault.button)
			await(t, tab, fmt.Sprintf(`document.querySelector('%s .fault').textContent === %q`, tile, fault.shows))
			await(t, tab, fmt.Sprintf(`document.querySelector('%s .faults .%s').getAttribute('aria-pressed') === 'true'`, tile, fault.button))
			await(t, tab, fmt.Sprintf(`document.querySelector('.lesson').textContent.includes(%q)`, fault.lesson))
			click(t, tab, tile+" .faults ."+fault.heal)
			await(t, tab, `document.querySelector('`+tile+` .fault').textContent === ''`)
			await(t, tab, `document.querySelector('`+tile+`').dataset.state === 'ready'`)
		})
	}
}

// openRetriedCall opens the page and, on it, the story of a call that was retried.
func openRetriedCall(t *testing.T, tab context.Context, p *pair) {
	t.Helper()
	open(t, tab, p.url)
	p.bs[0].setFault(t, `{"errorRate":1}`)
	choose(t, tab, "via", "grpc")
	choose(t, tab, "rate", "20")
	await(t, tab, `document.querySelector('#calls .retried')`)
	eval[any](t, tab, `document.querySelector('#calls li:has(.retried) button').click(); null`)
}

// A click on a call opens its story: the attempts with their pods and reasons, and the trace.
func TestPage_TellsTheStoryOfACall(t *testing.T) {
	p := startPair(t)
	tab := newTab(t)
	openRetriedCall(t, tab, p)
	await(t, tab, `document.querySelector('#story .verdict.ok')`)
	story := eval[string](t, tab, `document.getElementById('story').innerText.replace(/\s+/g, ' ')`)
	assert.Regexp(t, `service-a service-a-1 calls over gRPC`, story)
	assert.Regexp(t, `name dns:///service-b\.test:\d+ addresses 127\.0\.0\.2:\d+, 127\.0\.0\.3:\d+, 127\.0\.0\.4:\d+`, story)
	assert.Regexp(t, `attempt 1 127\.0\.0\.2:\d+ .*✕ unavailable .*attempt 2 127\.0\.0\.[34]:\d+ .*pod service-b-[23] responded`, story)
	assert.Regexp(t, `^https://traces\.test/trace/[0-9a-f]{32}$`, eval[string](t, tab, `document.querySelector('#story .trace a').href`))

	// A failed call says what to check next.
	for _, b := range p.bs {
		b.setFault(t, `{"latency":"1m"}`)
	}
	await(t, tab, `[...document.querySelectorAll('#calls .bad')].some((end) => end.textContent.startsWith('✕ timeout'))`)
	eval[any](t, tab, `document.querySelector('#calls li:has(.bad) button').click(); null`)
	await(t, tab, `document.querySelector('#story .verdict.bad')`)
	assert.Contains(t, eval[string](t, tab, `document.getElementById('story').innerText`), "Check next: Check whether the pod is slow or hangs.")
}

// The page outlives service-a, and says that it tries again; it shows service-b's absence, too.
func TestPage_ReconnectsAndShowsOutage(t *testing.T) {
	p := startPair(t)
	tab, _ := newTabWithConsole(t) // the browser itself reports each request that failed
	open(t, tab, p.url)
	p.a.kill()
	await(t, tab, `document.getElementById('link').textContent === 'connection lost, trying again'`)
	for _, b := range p.bs {
		b.kill()
	}
	p.startA(t)
	await(t, tab, `document.getElementById('link').textContent === 'live'`)
	choose(t, tab, "rate", "20")
	await(t, tab, `document.getElementById('lesson').textContent.startsWith('service-b is gone: all ')`)
	await(t, tab, `[...document.querySelectorAll('#rows tr')].some((row) => /refused|unavailable/.test(row.cells[8].textContent))`)
}

// A restart of service-a that takes away the way over which the page makes calls moves them to
// another.
func TestPage_OutlivesLostWay(t *testing.T) {
	p := startPair(t)
	tab, _ := newTabWithConsole(t) // the refused connection is on the console
	open(t, tab, p.url)
	choose(t, tab, "via", "grpc-service")
	choose(t, tab, "rate", "20")
	await(t, tab, `document.querySelectorAll('.figures .grpc-service').length > 0`)
	p.a.kill()
	p.envA = append(p.envA, "SERVICE_B_GRPC_SERVICE_ADDR=") // the last one counts
	p.startA(t)
	await(t, tab, `document.getElementById('link').dataset.state === 'live' && document.querySelectorAll('.figures .http').length > 0`)
	assert.Equal(t, "http", eval[string](t, tab, `document.querySelector('input[name=via]:checked').value`))
}

// A burst over a way that service-a has no longer fails, and the page does not ask for it again.
func TestPage_BurstOverLostWayFails(t *testing.T) {
	p := startPair(t)
	tab, _ := newTabWithConsole(t) // the refused connection is on the console
	open(t, tab, p.url)
	choose(t, tab, "via", "grpc-service")
	watchStreams(t, tab)
	p.a.kill()
	eval[any](t, tab, `document.getElementById('controls').requestSubmit(); null`)
	p.envA = append(p.envA, "SERVICE_B_GRPC_SERVICE_ADDR=") // the last one counts
	p.startA(t)
	await(t, tab, `document.getElementById('outcome').textContent.includes('no longer calls service-b this way')`)
	await(t, tab, `streams.at(-1).readyState === EventSource.OPEN && streams.at(-1).url.endsWith('/api/live')`)
	await(t, tab, `document.getElementById('link').dataset.state === 'live'`)
}

// A hidden tab has no connection to service-a, and so makes no calls.
func TestPage_HiddenMakesNoCalls(t *testing.T) {
	p := startPair(t)
	tab := newTab(t)
	open(t, tab, p.url)
	watchStreams(t, tab)
	choose(t, tab, "rate", "100")
	await(t, tab, `document.querySelectorAll('#calls button').length > 0`)
	assert.Equal(t, 1, eval[int](t, tab, `streams.filter((s) => s.readyState === EventSource.OPEN).length`))
	eval[any](t, tab, `Object.defineProperty(document, 'hidden', { value: true, configurable: true }); document.dispatchEvent(new Event('visibilitychange')); null`)
	eval[any](t, tab, `new Promise((done) => setTimeout(done, 3000))`) // longer than the page waits to reconnect
	assert.Equal(t, 0, eval[int](t, tab, `streams.filter((s) => s.readyState !== EventSource.CLOSED).length`))
	eval[any](t, tab, `delete document.hidden; document.dispatchEvent(new Event('visibilitychange')); null`)
	await(t, tab, `streams.at(-1).readyState === EventSource.OPEN && streams.at(-1).url.includes('rate=100')`)
}

// watchStreams makes the page keep the connections that it opens in streams, and the
// outcomes of its bursts in outcomes.
func watchStreams(t *testing.T, tab context.Context) {
	t.Helper()
	eval[any](t, tab, `{
		window.streams = [];
		window.outcomes = [];
		window.EventSource = class extends window.EventSource {
			constructor(...args) {
				super(...args);
				streams.push(this);
				this.addEventListener('burst', (event) => outcomes.push(JSON.parse(event.data)));
			}
		};
	} null`)
}

// axe-core finds no violation, in light and dark, on a desktop and on a phone, also while the
// connection is lost.
func TestPage_IsAccessible(t *testing.T) {
	axe, err := os.ReadFile("testdata/axe/axe.min.js")
	require.NoError(t, err)
	p := startPair(t)
	tab := newTab(t)
	openRetriedCall(t, tab, p)
	eval[any](t, tab, string(axe)+"; null")
	for _, screen := range []browser.Screen{browser.Desktop, browser.Phone} {
		for _, theme := range browser.Themes {
			require.NoError(t, browser.Show(tab, screen, theme))
			await(t, tab, fmt.Sprintf(`innerWidth === %d && matchMedia('(prefers-color-scheme: %s)').matches`, screen.Width, theme))
			eval[any](t, tab, `Promise.all(document.getAnimations().map((a) => a.finished.catch(() => {}))).then(() => null)`)
			for _, stale := range []bool{false, true} {
				eval[any](t, tab, fmt.Sprintf(`document.getElementById('picture').classList.toggle('stale', %t); null`, stale))
				violations := eval[json.RawMessage](t, tab, `axe.run().then((r) => r.violations.map((v) => ({ id: v.id, help: v.help, nodes: v.nodes.slice(0, 3).map((n) => n.html + ' ' + n.failureSummary) })))`)
				assert.JSONEq(t, `[]`, string(violations), "%s, %s, stale: %t", screen.Name, theme, stale)
			}
			assert.GreaterOrEqual(t, eval[float64](t, tab, contrastOfField), 3.0, "the border of the number field, %s", theme)
		}
	}
	levels := eval[[]int](t, tab, `[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))`)
	for i := 1; i < len(levels); i++ {
		assert.LessOrEqual(t, levels[i], levels[i-1]+1, "levels of the headings: %v", levels)
	}
}

// contrastOfField is the contrast of the number field's border, by WCAG 2.
const contrastOfField = `(() => {
	const luminance = (color) => {
		const [r, g, b] = color.match(/[\d.]+/g).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const border = luminance(getComputedStyle(document.getElementById('burst-n')).borderTopColor);
	const back = luminance(getComputedStyle(document.body).backgroundColor);
	return (Math.max(border, back) + 0.05) / (Math.min(border, back) + 0.05);
})()`

// Every control is reached with the Tab key, shows its focus, and has the name that it shows.
func TestPage_WorksByKeyboard(t *testing.T) {
	p := startPair(t)
	tab := newTab(t)
	open(t, tab, p.url)
	choose(t, tab, "rate", "5")
	await(t, tab, `document.querySelectorAll('#calls button').length === 10`)
	choose(t, tab, "rate", "0")
	assert.Empty(t, eval[[]string](t, tab, `[...document.querySelectorAll('button, a')].filter((e) => !e.innerText.trim()).map((e) => e.outerHTML)`))
	assert.Empty(t, eval[[]string](t, tab, `[...document.querySelectorAll('label [aria-label]')].map((e) => e.outerHTML)`))

	eval[any](t, tab, `{
		// Of the radio buttons of a group, Tab reaches the checked one; the arrow keys reach the others.
		window.controls = [...document.querySelectorAll('button, a, input:not([type=radio]), input:checked, .scroll')];
		window.focused = new Map();
		document.activeElement.blur();
		document.addEventListener('focusin', ({ target }) => {
			const shown = target.matches('.choice input') ? target.nextElementSibling : target;
			focused.set(target, getComputedStyle(shown).outlineStyle);
		});
	} null`)
	for range eval[int](t, tab, `controls.length`) + 2 {
		require.NoError(t, browser.Press(tab, "Tab"))
	}
	assert.Empty(t, eval[[]string](t, tab, `controls.filter((e) => !focused.has(e)).map((e) => e.outerHTML)`), "not reached with Tab")
	assert.Empty(t, eval[[]string](t, tab, `[...focused].filter(([, outline]) => outline === 'none').map(([e]) => e.outerHTML)`), "without a visible focus")

	// A burst does not take the focus away.
	eval[any](t, tab, `document.getElementById('burst-send').focus()`)
	require.NoError(t, browser.Press(tab, "Enter"))
	await(t, tab, `document.getElementById('outcome').textContent.startsWith('200 calls over HTTP in ')`)
	assert.Equal(t, "burst-send", eval[string](t, tab, `document.activeElement.id`))
}

// An attempt at an address from which no pod has responded goes to its box, for IPv6, too.
func TestPage_AttemptGoesToItsAddress(t *testing.T) {
	fake := serveSnapshots(t, busy(1)) // before the tab: the tab must close first
	tab := newTab(t)
	open(t, tab, fake.url)
	for peer, ip := range map[string]string{"10.0.0.1:9090": "10.0.0.1", "[fd00::1]:9090": "fd00::1"} {
		snapshot, err := json.Marshal(object{
			"ways": []object{way("grpc", "client", 2)}, "pods": []object{{"ip": ip, "state": "ready"}, {"ip": "fd00::", "state": "ready"}},
			"calls": []object{{"via": "grpc", "class": "timeout", "call": object{"peer": peer, "tries": []object{{"peer": peer}}}}},
		})
		require.NoError(t, err)
		assert.Equal(t, []string{ip}, eval[[]string](t, tab, fmt.Sprintf(`Promise.all([import('/static/dots.js'), import('/static/model.js')]).then(([{ Dots }, { model }]) => {
			const dots = new Dots(null), keys = [];
			dots.start = (via, stops) => keys.push(...stops.map((s) => s.pod));
			dots.add(model(%s));
			return keys;
		})`, snapshot)), peer)
	}
}

// Another rate may move the connection to another instance of service-a. The page then drops
// the sentence and the calls of the one before, and shows those of the new one at once.
func TestPage_DropsOtherInstancesCalls(t *testing.T) {
	first := busy(3)
	var moved atomic.Bool
	next := make(chan struct{})
	release := sync.OnceFunc(func() { close(next) })
	fake := serveSnapshots(t, func(n int) object {
		if !moved.Load() {
			return first(n)
		}
		<-next
		return object{"ways": []object{way("http", "network", 0)}, "pods": []object{pod(9, "ready", nil, object{"http": figures(20, 1, nil)})}, "calls": []object{callOf(1, "http", "b-9", "10.96.0.9:80", "ok")}}
	})
	t.Cleanup(release) // before the server closes
	tab := newTab(t)
	open(t, tab, fake.url)
	await(t, tab, `document.querySelectorAll('#calls button').length === 10`)
	eval[any](t, tab, `document.querySelector('#calls button').focus()`) // the list stands still
	moved.Store(true)
	fake.servedBy.Store("service-a-2")
	eval[any](t, tab, `document.querySelector('input[name=rate][value="20"]').dispatchEvent(new Event('change')); null`)
	await(t, tab, `document.getElementById('lesson').textContent === 'Another instance of service-a makes the calls now: service-a-2.'`)
	assert.Equal(t, 0, eval[int](t, tab, `document.querySelectorAll('#calls button').length`))
	assert.Empty(t, eval[string](t, tab, `document.getElementById('lesson-more').textContent`))

	eval[any](t, tab, `{ window.told = []; new MutationObserver(() => told.push(document.getElementById('lesson').textContent)).observe(document.getElementById('lesson'), { childList: true }); } null`)
	release()
	await(t, tab, `document.querySelector('#calls')?.innerText.includes('b-9')`)
	assert.Equal(t, []string{"All 20 HTTP calls went to b-9, the only pod behind the name. With more pods, calls spread."}, eval[[]string](t, tab, `told`))
}

// The sentences keep a pod's short name, and a number and its unit, on one line.
func TestPage_KeepsShortNamesTogether(t *testing.T) {
	fake := serveSnapshots(t, busy(1))
	tab := newTab(t)
	open(t, tab, fake.url)
	for _, words := range []string{"…bnv88", "33 %", "300 ms"} {
		lines := eval[[]int](t, tab, fmt.Sprintf(`import('/static/words.js').then(({ unbroken }) => [%[1]q, unbroken(%[1]q)].map((words) => {
			const span = document.createElement('span');
			const box = document.createElement('p');
			span.textContent = words;
			box.style.width = '1px';
			box.style.overflowWrap = 'normal';
			box.append(span);
			document.body.append(box);
			const lines = span.getClientRects().length;
			box.remove();
			return lines;
		}))`, words))
		assert.Equal(t, []int{2, 1}, lines, "%s as is, and unbroken", words)
	}
}

// Names are text, whatever they hold.
func TestPage_NamesAreText(t *testing.T) {
	fake := serveSnapshots(t, busy(1))
	tab := newTab(t)
	open(t, tab, fake.url)
	hostile := `<img src=x onerror="document.title='taken'">${}</script>`
	await(t, tab, `document.querySelectorAll('.pod').length === 1`)
	snapshot, err := json.Marshal(object{
		"ways": []object{{"via": "http", "target": hostile, "addresses": []string{hostile}}},
		"pods": []object{{"pod": hostile, "ip": hostile, "node": hostile, "zone": hostile, "state": "ready", "fault": object{"latency": hostile}, "via": object{"http": object{"count": 20, "rate": 1, "p50": 1, "errors": object{hostile: 1}}}}},
	})
	require.NoError(t, err)
	got := eval[bool](t, tab, fmt.Sprintf(`Promise.all(['dots', 'model', 'picture', 'table', 'lesson'].map((n) => import('/static/' + n + '.js'))).then(([, { model }, { Picture }, { Table }, { lessons }]) => {
		const m = model(%s);
		new Picture(() => {}).update(m, 'http', true);
		new Table(() => {}).update(m, true);
		return document.querySelectorAll('img').length === 0 && document.body.innerText.includes('onerror') && document.title !== 'taken' && lessons(m).length > 0;
	})`, snapshot))
	assert.True(t, got)
}

// A hundred pods are a dense grid, and neither snapshots nor calls pile up in the page.
func TestPage_HundredPodsStayBounded(t *testing.T) {
	fake := serveSnapshots(t, busy(100)) // before the tab: the tab must close first
	tab := newTab(t)
	open(t, tab, fake.url)
	await(t, tab, `document.querySelectorAll('.pod').length === 100`)
	assert.Equal(t, "dense", eval[string](t, tab, `document.getElementById('picture').dataset.size`))
	for _, screen := range []browser.Screen{browser.Small, browser.Desktop} {
		require.NoError(t, browser.Show(tab, screen, "light"))
		await(t, tab, `document.documentElement.scrollWidth <= innerWidth`)
		cut := eval[[]string](t, tab, `[...document.querySelectorAll('.pod strong')].filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0).map((e) => e.textContent)`)
		assert.Empty(t, cut, "names that do not fit, on %s", screen.Name)
	}
	fake.await(t, 20)
	nodes := eval[int](t, tab, `document.querySelectorAll('*').length`)
	fake.await(t, 100)
	// Marks come and go: at most 180 are on their way.
	assert.InDelta(t, nodes, eval[int](t, tab, `document.querySelectorAll('*').length`), 200)
	assert.LessOrEqual(t, eval[int](t, tab, `document.querySelectorAll('#dots > *').length`), 180)
	assert.LessOrEqual(t, eval[int](t, tab, `document.querySelectorAll('#calls > *').length`), 10)
}
