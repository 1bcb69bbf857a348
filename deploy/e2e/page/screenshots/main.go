// Screenshots takes pictures of the page while calls are made, for the documents: the page,
// and one call's story, in light and dark, on a desktop and on a phone. make screenshots
// runs it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"example.com/tandem/deploy/e2e/page/browser"
)

func main() {
	url := flag.String("url", "http://localhost:8080/", "the page of a service-a whose service-b has several pods")
	out := flag.String("out", "docs/img", "folder of the pictures")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := takeAll(ctx, *url, *out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "screenshots:", err)
		os.Exit(1)
	}
}

// settle is how long the page may move after a change of its size or of a fault.
const settle = 1500 * time.Millisecond

// views are the parts of the page that are shown, and what brings them into view.
var views = []struct{ name, show string }{
	{"page", `scrollTo(0, 0)`},
	{"call", `document.querySelector('.story').scrollIntoView({ block: 'center' })`},
}

func takeAll(ctx context.Context, url, out string) (err error) {
	path, err := browser.Find()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // a folder of documents
		return err
	}
	tab, cancel, err := browser.Start(ctx, path)
	if err != nil {
		return err
	}
	defer cancel()
	fmt.Println("making calls on", url)
	if err := errors.Join(browser.Show(tab, browser.Desktop, "light"), browser.Open(tab, url)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, click(tab, ".pod .faults .heal")) }()
	if err := makeCalls(tab); err != nil {
		return err
	}
	for _, screen := range []browser.Screen{browser.Desktop, browser.Phone} {
		for _, theme := range browser.Themes {
			for _, view := range views {
				if err := take(tab, screen, theme, view.show, filepath.Join(out, view.name+"-"+theme+"-"+screen.Name+".png")); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func take(tab context.Context, screen browser.Screen, theme, show, file string) error {
	if err := browser.Show(tab, screen, theme); err != nil {
		return err
	}
	time.Sleep(settle)
	if _, err := browser.Eval[any](tab, show+"; null"); err != nil {
		return err
	}
	time.Sleep(settle)
	png, err := browser.Screenshot(tab)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	fmt.Printf("%s: %d KB\n", file, len(png)/1024)
	return os.WriteFile(file, png, 0o644) //nolint:gosec // a document
}

// makeCalls makes one pod fail, where faults are on, and calls over each transport. It opens
// the story of a call, if there is one then of a call with two attempts.
func makeCalls(tab context.Context) error {
	steps := []func() error{
		func() error { return await(tab, `document.querySelectorAll('.pod').length > 0`) },
		func() error { return click(tab, `input[name="via"][value="http"]`) },
		func() error { return click(tab, `#burst-send`) },
		func() error { return await(tab, `!document.getElementById('burst-send').ariaDisabled`) },
		func() error { return click(tab, `input[name="via"][value="grpc"]`) },
		func() error { return click(tab, `input[name="rate"][value="50"]`) },
		func() error { return click(tab, `.pod .faults .failing`) },
		func() error { return await(tab, `document.querySelectorAll('#calls button').length >= 10`) },
		// Without faults no call has two attempts.
		func() error {
			_ = browser.Await(tab, `document.querySelector('#calls .retried')`, 10*time.Second)
			_, err := browser.Eval[any](tab, `(document.querySelector('#calls li:has(.retried) button') ?? document.querySelector('#calls button')).click(); null`)
			return err
		},
		func() error { return await(tab, `document.querySelector('#story .verdict')`) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// click clicks the first element that a CSS selector finds, if there is one.
func click(tab context.Context, selector string) error {
	_, err := browser.Eval[any](tab, fmt.Sprintf(`document.querySelector(%q)?.click(); null`, selector))
	return err
}

func await(tab context.Context, expression string) error {
	return browser.Await(tab, expression, 30*time.Second)
}
