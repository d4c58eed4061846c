// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentialprovider

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	kubeletconfig "k8s.io/kubelet/config/v1"
)

func TestAPluginThatFailsIsNamedAndTheOthersAreUsed(t *testing.T) {
	good := response("Image", 0, "bad@registry.example.com")
	doing := func(what string) func(*node) kubeletconfig.CredentialProvider {
		return func(n *node) kubeletconfig.CredentialProvider { return with(n.provider("bad", what), "ANSWER", good) }
	}
	answering := func(answer string) func(*node) kubeletconfig.CredentialProvider {
		return func(n *node) kubeletconfig.CredentialProvider { return n.answering("bad", answer) }
	}
	for _, tt := range []struct {
		reason string
		bad    func(*node) kubeletconfig.CredentialProvider
		want   string
	}{
		{"an exit status, whatever was answered before", doing("fail"), "exit status 3"},
		{"a signal", doing("die"), "signal: killed"},
		{"an answer without end", doing("flood"), "its answer has more than 1048576 bytes"},
		{"no answer", answering(""), "its answer is not JSON, or not of the right form"},
		{"no JSON", answering("hunter2"), "its answer is not JSON, or not of the right form"},
		{"a password that is no string", answering(strings.Replace(good, `"hunter2"`, `["hunter2"]`, 1)), "its answer is not JSON, or not of the right form"},
		{
			"another kind", answering(strings.Replace(good, "CredentialProviderResponse", "ExecCredential", 1)),
			"its answer must be a CredentialProviderResponse of " + v1,
		},
		{
			"another version than that of the request", answering(strings.Replace(good, v1, v1+"beta1", 1)),
			"its answer must be a CredentialProviderResponse of " + v1,
		},
		{
			"an unknown kind of key", answering(strings.Replace(good, `"Image"`, `"hunter2"`, 1)),
			"cacheKeyType of its answer must be Image, Registry or Global",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			n := newNode(t)
			providers := n.start(tt.bad(n), n.answering("good", response("Image", 0, "good@registry.example.com")))
			found, err := providers.For(t.Context(), image)
			if len(found) != 1 || found[0].Username != "good" {
				t.Errorf("%d credentials, want those of the other provider", len(found))
			}
			if want := `credential provider "bad": ` + tt.want; err == nil || err.Error() != want {
				t.Errorf("err = %v, want %s", err, want)
			}
		})
	}
}

func TestAPluginThatIsGoneIsNamed(t *testing.T) {
	n := newNode(t)
	providers := n.start(n.answering("gone", response("Image", 0)))
	path := filepath.Join(n.options.BinDir, "gone")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want := `credential provider "gone": fork/exec ` + path + ": no such file or directory"
	if _, err := providers.For(t.Context(), image); err == nil || err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
}

func TestAPluginThatHangsIsEnded(t *testing.T) {
	n := newNode(t)
	providers := n.start(n.provider("slow", "hang"))
	if got := providers[0].plugin.timeout; got != time.Minute {
		t.Errorf("a plugin has %s, want the kubelet's minute", got)
	}
	providers[0].plugin.timeout = time.Millisecond
	want := `credential provider "slow": no answer within 1ms`
	if _, err := providers.For(t.Context(), image); err == nil || err.Error() != want {
		t.Errorf("err = %v, want %s", err, want)
	}
}

func TestAPluginThatHungIsLeftAloneForAWhile(t *testing.T) {
	n := newNode(t)
	path := filepath.Join(t.TempDir(), "fifo") // that nobody opens
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	providers := n.start(with(n.provider("slow", "hang"), "FIFO", path))
	slow := providers[0]
	slow.plugin.timeout = time.Millisecond
	const hung = `credential provider "slow": no answer within 1ms`
	ask := func(image, want string) {
		t.Helper()
		if _, err := providers.For(t.Context(), image); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("err = %v, want %s", err, want)
		}
	}
	ask(image, hung)
	slow.plugin.path, slow.plugin.timeout = "/none", time.Minute // it cannot run unnoticed
	ask(image, hung)
	ask("registry.example.com/another", hung)
	if left := time.Until(slow.silent.until); left > 5*time.Minute {
		t.Errorf("it is left alone for %s more", left)
	}
	slow.silent.until = time.Now() // that time passes
	ask(image, `credential provider "slow": fork/exec /none`)
	ask(image, `credential provider "slow": fork/exec /none`)
}

func TestAPluginEndsWithItsProcessesWhenThePullDoes(t *testing.T) {
	n := newNode(t)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	providers := n.start(with(n.provider("slow", "hang"), "FIFO", path))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		_, err := providers.For(ctx, image)
		failed <- err
	}()
	fifo, err := os.Open(path) // waits for the plugin to open it
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fifo.Close() }()
	if _, err := io.ReadFull(fifo, make([]byte, len("hangs\n"))); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-failed; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	// The child of the plugin has the FIFO open as long as it lives.
	if err := fifo.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(fifo); err != nil || len(rest) > 0 {
		t.Errorf("the child of the plugin goes on: %q, %v", rest, err)
	}
}

func TestOfWhatAPluginWritesOnlyTheFirstLineOfStderrIsLogged(t *testing.T) {
	n := newNode(t)
	n.install(with(n.provider("bad", "fail"), "ANSWER", response("Image", 0, "robot@registry.example.com")))
	var logged []string
	providers, err := New(n.options, funcr.New(func(_, args string) { logged = append(logged, args) }, funcr.Options{Verbosity: 2}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := providers.For(t.Context(), image); err == nil {
		t.Error("it does not fail")
	}
	if len(logged) != 1 || !strings.Contains(logged[0], `"stderr"="no connection"`) || strings.Contains(logged[0], "hunter2") {
		t.Errorf("logged %q", logged)
	}
}
