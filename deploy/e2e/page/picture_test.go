package page

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"example.com/tandem/deploy/e2e/page/browser"
)

// picture returns a snapshot of pods and of calls to them over gRPC.
func picture(pods, calls []object) object {
	addresses := []string{}
	for _, p := range pods {
		addresses = append(addresses, fmt.Sprintf("%s:9090", p["ip"]))
	}
	return object{
		"at": time.Now().UnixMilli(), "pods": pods, "unserved": object{}, "calls": calls, "more": 0,
		"ways": []object{
			{"via": "http", "target": "http://service-b", "addresses": []string{"10.96.0.9:80"}, "balancedBy": "network"},
			{"via": "grpc", "target": "dns:///service-b-headless:9090", "addresses": addresses, "balancedBy": "client"},
		},
	}
}

// readyPods returns pods without a zone and node, with calls over gRPC.
func readyPods(first, n int) []object {
	pods := []object{}
	for i := first; i < first+n; i++ {
		pods = append(pods, pod(i, "ready", nil, object{"grpc": figures(100, 1, nil)}))
	}
	return pods
}

// A line is as wide as its share of the calls.
func TestPicture_LineWidthIsShare(t *testing.T) {
	pods := []object{
		pod(1, "ready", nil, object{"http": figures(100, 1, nil), "grpc": figures(200, 1, nil)}),
		pod(2, "ready", nil, object{"grpc": figures(100, 1, nil)}),
	}
	fake := serveSnapshots(t, func(int) object {
		time.Sleep(50 * time.Millisecond)
		return picture(pods, nil)
	})
	tab := newTab(t)
	open(t, tab, fake.url)
	await(t, tab, `document.querySelectorAll('#lines .busy').length === 5`)
	widths := eval[map[string]string](t, tab, `Object.fromEntries([...document.getElementById('lines').keyedNodes].map(([ends, line]) => [ends, line.style.strokeWidth]))`)
	assert.Equal(t, map[string]string{ // 1.5 pixels, and 5 more for all calls
		"caller>name http": "2.8px", "name http>pod b-1": "2.8px",
		"caller>name grpc": "5.3px", "name grpc>pod b-1": "4px", "name grpc>pod b-2": "2.8px",
	}, widths)
}

// When a pod has left, the others move up, and lines lead to where they are then.
func TestPicture_LinesFollowPods(t *testing.T) {
	for _, c := range []struct {
		pods  int
		boxes string // at which lines end
	}{
		{3, ".pod"},
		{30, ".node"}, // a dense grid
	} {
		t.Run(fmt.Sprintf("%d pods", c.pods), func(t *testing.T) {
			var first atomic.Int64
			fake := serveSnapshots(t, func(int) object {
				time.Sleep(50 * time.Millisecond)
				return picture(readyPods(int(first.Load()), c.pods-int(first.Load())), nil)
			})
			tab := newTab(t)
			open(t, tab, fake.url)
			// The lines from gRPC's name end at the left of each box, half way down.
			lead := fmt.Sprintf(`(() => {
				const frame = document.getElementById('picture').getBoundingClientRect();
				const ends = [...document.querySelectorAll('#lines .grpc')].map((line) => line.getAttribute('d').match(/[-.\d]+/g).slice(-2).map(Number));
				const boxes = [...document.querySelectorAll(%q)].map((e) => e.getBoundingClientRect());
				return boxes.length > 0 && boxes.every((b) => ends.some(([x, y]) => Math.hypot(x - b.left + frame.left, y - (b.top + b.bottom) / 2 + frame.top) < 2));
			})()`, c.boxes)
			await(t, tab, fmt.Sprintf(`document.querySelectorAll('.pod').length === %d && %s`, c.pods, lead))
			first.Store(1)
			await(t, tab, `document.querySelector('.pod.leaving')`)
			await(t, tab, fmt.Sprintf(`document.querySelectorAll('.pod').length === %d && %s`, c.pods-1, lead))
		})
	}
}

// A click on a mark that moves opens the story of its call.
func TestMark_ClickOpensStory(t *testing.T) {
	pods := readyPods(1, 3)
	fake := serveSnapshots(t, func(n int) object {
		time.Sleep(100 * time.Millisecond)
		// At most one call in three seconds goes to the second pod.
		if n%30 == 0 {
			return picture(pods, []object{callOf(n, "grpc", "b-2", "10.0.0.2:9090", "ok")})
		}
		return picture(pods, []object{callOf(n, "http", "b-1", "10.96.0.9:80", "ok")})
	})
	tab := newTab(t)
	open(t, tab, fake.url)
	await(t, tab, `(() => {
		const at = (mark) => {
			const { left, top, width, height } = mark.getBoundingClientRect();
			return width > 0 && [left + width / 2, top + height / 2];
		};
		for (const mark of document.querySelectorAll('#dots .grpc')) {
			if (!at(mark)) continue;
			const [x, y] = at(mark);
			// Lines begin at the same point, where a click may be on either mark.
			const near = [...document.querySelectorAll('#dots > *')].map(at).filter((other) => other && Math.hypot(other[0] - x, other[1] - y) < 20);
			if (near.length > 1) continue;
			document.elementFromPoint(x, y).dispatchEvent(new MouseEvent('click', { bubbles: true, clientX: x, clientY: y }));
			return document.querySelector('#story .verdict');
		}
	})()`)
	story := eval[string](t, tab, `document.getElementById('story').innerText.replace(/\s+/g, ' ')`)
	assert.Regexp(t, `calls over gRPC.* pod b-2 responded`, story)
}

// With reduced motion there are no marks and no text about them, and pods go at once.
func TestPage_MovesNothingIfAsked(t *testing.T) {
	var first atomic.Int64
	fake := serveSnapshots(t, func(n int) object {
		time.Sleep(50 * time.Millisecond)
		return picture(readyPods(int(first.Load()), 3), []object{callOf(n, "grpc", "b-2", "10.0.0.2:9090", "ok")})
	})
	tab := newTab(t)
	require.NoError(t, browser.ReduceMotion(tab))
	open(t, tab, fake.url)
	await(t, tab, `document.querySelectorAll('#calls button').length > 0`)
	eval[any](t, tab, `new MutationObserver(() => { window.left ||= document.querySelector('.leaving'); }).observe(document.getElementById('zones'), { subtree: true, attributes: true }); null`)
	first.Store(1)
	await(t, tab, `document.querySelector('.pod[data-key="b-3"]') && document.querySelectorAll('.pod').length === 3`)
	assert.True(t, eval[bool](t, tab, `window.left == null`))
	assert.Zero(t, eval[int](t, tab, `document.querySelectorAll('#dots > *').length`))
	assert.False(t, eval[bool](t, tab, `document.getElementById('scale').checkVisibility()`))
	assert.Equal(t, "Click a call in the list.", eval[string](t, tab, `document.getElementById('story').innerText`))
}

// A page that is open for long holds as much as one that was just opened, while pods come and
// go: in every fourth of 2000 snapshots one pod is new and another has left.
func TestPage_MemoryIsBounded(t *testing.T) {
	const warm, all, pods = 200, 2000, 6
	var made, limit atomic.Int64
	limit.Store(warm)
	fake := serveSnapshots(t, func(int) object {
		n := made.Load()
		if n < limit.Load() {
			n = made.Add(1)
		} else {
			time.Sleep(50 * time.Millisecond) // the same pods again
		}
		return snapshotOf(int(n)/4, pods, int(n))
	})
	tab := newTab(t)
	open(t, tab, fake.url)
	measure := func(n int) browser.Memory {
		last := n/4 + pods - 1
		drawn := fmt.Sprintf(`document.getElementById('rows').textContent.includes('x%04d') && document.querySelectorAll('.pod').length === %d`, last, pods)
		require.NoError(t, browser.Await(tab, drawn, 4*timeout))
		m, err := browser.Measure(tab)
		require.NoError(t, err)
		t.Logf("after %d snapshots: %+v", n, m)
		return m
	}
	before := measure(warm)
	limit.Store(all)
	after := measure(all)
	assert.Less(t, after.Nodes, before.Nodes+300) // at most 180 marks come and go
	assert.Less(t, after.Listeners, before.Listeners+20)
	assert.Less(t, after.Heap, before.Heap+1<<20)
}
