// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
)

const blobText = "0123456789"

var blobDigest = digest.FromString(blobText)

// clientOf makes a client of these mirrors.
func clientOf(t *testing.T, handlers ...http.HandlerFunc) *Client {
	t.Helper()
	client := &Client{
		Registry: "docker.io", Repository: "library/app", UserAgent: "sluice-agent/test",
		Throttle:      &Throttle{AfterMiss: time.Hour, AfterError: time.Hour, AfterSilence: time.Hour, AfterDistrust: time.Hour},
		AnswerTimeout: time.Second, SilenceTimeout: 3 * time.Second,
	}
	for _, handler := range handlers {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		client.Hosts = append(client.Hosts, confined(server, Config{}))
	}
	return client
}

// confined is the server as a mirror that a peer may ask.
func confined(server *httptest.Server, config Config) docker.RegistryHost {
	hosts := Hosts{registry: "docker.io", config: config}
	return hosts.confine(docker.RegistryHost{
		Client: server.Client(), Scheme: "http", Host: strings.TrimPrefix(server.URL, "http://"), Path: "/v2",
		Header: http.Header{"X-Of-Host": {"yes"}},
	})
}

// ask makes a client of these mirrors and sends one GET.
func ask(t *testing.T, offset int64, handlers ...http.HandlerFunc) (*Content, error) {
	t.Helper()
	content, err := clientOf(t, handlers...).Get(t.Context(), Blobs, blobDigest, offset)
	if err == nil {
		t.Cleanup(func() { _ = content.Close() })
	}
	return content, err
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func serveBlob(w http.ResponseWriter, r *http.Request) {
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(blobText))
}

func answer(status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
}

func hangUp(w http.ResponseWriter, _ *http.Request) {
	connection, _, _ := w.(http.Hijacker).Hijack()
	_ = connection.Close()
}

func TestGetSendsWhatSpegelNeeds(t *testing.T) {
	var got *http.Request
	content, err := ask(t, 4, func(w http.ResponseWriter, r *http.Request) {
		got = r
		serveBlob(w, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "/v2/library/app/blobs/" + blobDigest.String() + "?ns=docker.io"; got.Method != http.MethodGet || got.URL.String() != want {
		t.Errorf("%s %s, want GET %s", got.Method, got.URL, want)
	}
	for header, want := range map[string]string{
		"User-Agent": "sluice-agent/test", "Range": "bytes=4-", "Accept-Encoding": "identity", "X-Of-Host": "yes",
	} {
		if got.Header.Get(header) != want {
			t.Errorf("%s: %q, want %q", header, got.Header.Get(header), want)
		}
	}
	if raw, err := io.ReadAll(content); err != nil || content.Offset != 4 || string(raw) != blobText[4:] {
		t.Errorf("offset %d, %q, %v", content.Offset, raw, err)
	}
}

func TestGet(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(serveBlob))
	defer elsewhere.Close()
	for _, tt := range []struct {
		reason  string
		mirrors []http.HandlerFunc
		want    string
		miss    bool
		useless bool
		err     string
	}{
		{reason: "a mirror that has it", mirrors: []http.HandlerFunc{serveBlob}, want: blobText},
		{reason: "a mirror without it", mirrors: []http.HandlerFunc{http.NotFound}, miss: true, err: "does not have it"},
		{reason: "the second has it", mirrors: []http.HandlerFunc{http.NotFound, serveBlob}, want: blobText},
		{reason: "the first is dead", mirrors: []http.HandlerFunc{hangUp, serveBlob}, want: blobText},
		{reason: "the only one is dead", mirrors: []http.HandlerFunc{hangUp}, useless: true, err: "EOF"},
		{reason: "one is dead, the other answers", mirrors: []http.HandlerFunc{hangUp, http.NotFound}, miss: true, err: "EOF"},
		{reason: "an error of its own", mirrors: []http.HandlerFunc{answer(503)}, err: "503"},
		{reason: "a mirror with too much to do", mirrors: []http.HandlerFunc{answer(429)}, err: "429"},
		{reason: "a mirror that wants a password", mirrors: []http.HandlerFunc{answer(401)}, useless: true, err: "refuses with status 401"},
		{reason: "a mirror that is closed", mirrors: []http.HandlerFunc{answer(403)}, useless: true, err: "refuses with status 403"},
		{reason: "a mirror that knows HEAD only", mirrors: []http.HandlerFunc{answer(405)}, useless: true, err: "refuses with status 405"},
		{reason: "one refuses, the other has it", mirrors: []http.HandlerFunc{answer(403), serveBlob}, want: blobText},
		{reason: "no mirror", useless: true, err: "no mirror is configured"},
		{
			reason: "a redirect on the host", mirrors: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/v2/") {
					http.Redirect(w, r, "/storage", http.StatusTemporaryRedirect)
					return
				}
				serveBlob(w, r)
			}}, want: blobText,
		},
		{
			reason: "a redirect off the host", mirrors: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
			}}, useless: true, err: "leads off the mirror",
		},
		{
			reason: "no answer for too long", mirrors: []http.HandlerFunc{hang},
			useless: true, err: "went silent",
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			content, err := ask(t, 0, tt.mirrors...)
			if tt.err == "" {
				if err != nil {
					t.Fatal(err)
				}
				if raw, err := io.ReadAll(content); err != nil || string(raw) != tt.want {
					t.Errorf("%q, %v", raw, err)
				}
				return
			}
			var failed *Error
			if !errors.As(err, &failed) || !strings.Contains(err.Error(), tt.err) || failed.Useless != tt.useless || errors.Is(err, ErrMiss) != tt.miss {
				t.Errorf("%v (%+v), want %q, useless %v, a miss %v", err, failed, tt.err, tt.useless, tt.miss)
			}
		})
	}
}

func TestAMirrorThatRefusesMayBeAskedAgainSoonerThanOneThatMisses(t *testing.T) {
	for _, tt := range []struct {
		reason string
		status int
		soon   bool
	}{{"it refuses", 403, true}, {"it has not got it", 404, false}, {"it has too much to do", 429, false}, {"it was too slow", 408, false}} {
		t.Run(tt.reason, func(t *testing.T) {
			client := clientOf(t, answer(tt.status))
			client.Throttle = &Throttle{AfterMiss: time.Hour}
			_, _ = client.Get(t.Context(), Blobs, blobDigest, 0)
			if soon := client.Throttle.pauseLeft(client.Throttle.addUser(key(client.Hosts[0], blobDigest))) <= 0; soon != tt.soon {
				t.Errorf("it may be asked again at once: %t, want %t", soon, tt.soon)
			}
		})
	}
}

func TestAMirrorThatAnswersNothingIsNotAskedForAWhile(t *testing.T) {
	var asked atomic.Int32
	client := clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		hang(w, r)
	}, serveBlob)
	for range 3 {
		content, err := client.Get(t.Context(), Blobs, blobDigest, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, content)
		_ = content.Close()
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times, want once", n)
	}
	client.Hosts = client.Hosts[:1]
	var failed *Error
	_, err := client.Get(t.Context(), Blobs, digest.FromString("another"), 0)
	if !errors.As(err, &failed) || !failed.Useless || !failed.Silent || asked.Load() != 2 {
		t.Errorf("the only mirror: %v, asked %d times", err, asked.Load())
	}
}

func TestSilent(t *testing.T) {
	client := clientOf(t, serveBlob, hang, http.NotFound, hangUp, answer(503))
	silent := client.Silent(t.Context())
	if len(silent) != 1 || silent[0].Host != client.Hosts[1].Host {
		t.Errorf("%q are silent, want the one that hangs, %s", urls(silent), client.Hosts[1].Host)
	}
	client = clientOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/library/app/manifests/v1" {
			hang(w, r)
		}
	}, http.NotFound)
	if silent := client.Silent(t.Context()); len(silent) > 0 {
		t.Errorf("%q are silent, but answer", urls(silent))
	}
	if silent := client.SilentAbout(t.Context(), "v1"); len(silent) != 1 || silent[0].Host != client.Hosts[0].Host {
		t.Errorf("%q do not answer about the image, want %s", urls(silent), client.Hosts[0].Host)
	}
}

// breakOff sends the beginning of the blob and then nothing.
func breakOff(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", fmt.Sprint(len(blobText)))
	_, _ = io.WriteString(w, blobText[:4])
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func TestABodyThatGoesSilentEnds(t *testing.T) {
	content, err := ask(t, 0, breakOff)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(content)
	var failed *Error
	if !errors.Is(err, ErrStalled) || !errors.As(err, &failed) || string(raw) != blobText[:4] || !strings.Contains(err.Error(), "for 3s") {
		t.Errorf("%q, %v", raw, err)
	}
}

func TestAMirrorThatDoesNotSendWhatItHasIsAskedLast(t *testing.T) {
	for _, tt := range []struct {
		reason string
		first  http.HandlerFunc
		want   string
		err    string
	}{
		// The second mirror has no need to wait as long as one that is alone.
		{"it breaks off", breakOff, blobText[:4], "for 1s"},
		{"it closes the connection", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(blobText)))
			_, _ = io.WriteString(w, blobText[:4])
		}, blobText[:4], "unexpected EOF"},
		{"it sends something else", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "garbage") }, "garbage", ""},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			client := clientOf(t, tt.first, serveBlob)
			content, err := client.Get(t.Context(), Blobs, blobDigest, 0)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := io.ReadAll(content)
			if string(raw) != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%q, %v, want %q and %q", raw, err, tt.want, tt.err)
			}
			if err == nil {
				content.Distrust()
			}
			_ = content.Close()

			content, err = client.Get(t.Context(), Blobs, digest.FromString("another"), 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = content.Close() }()
			if raw, err := io.ReadAll(content); string(raw) != blobText || err != nil {
				t.Errorf("then %q, %v, want what the second mirror has", raw, err)
			}
		})
	}
}

func TestAMirrorIsTrustedThoughTheCallerGivesUp(t *testing.T) {
	client := clientOf(t, breakOff, http.NotFound)
	ctx, cancel := context.WithCancel(t.Context())
	content, err := client.Get(ctx, Blobs, blobDigest, 0)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.ReadAll(content); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	_ = content.Close()
	if !client.Throttle.distrustedUntil(client.Hosts[0].Host).IsZero() {
		t.Error("the mirror is asked last")
	}
}

func TestOfTwoMirrorsThatBreakOffTheOneBeforeIsAskedFirst(t *testing.T) {
	client := clientOf(t, breakOff, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(blobText)))
		_, _ = io.WriteString(w, blobText[:6])
	})
	var got []string
	for i := range 4 {
		content, err := client.Get(t.Context(), Blobs, digest.FromString(fmt.Sprint(i)), 0)
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := io.ReadAll(content)
		got = append(got, string(raw))
		_ = content.Close()
	}
	if want := []string{blobText[:4], blobText[:6], blobText[:4], blobText[:6]}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAServerThatRefusesRangeIsAskedWithout(t *testing.T) {
	for _, status := range []int{400, 416, 501} {
		content, err := ask(t, 4, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(status)
				return
			}
			serveBlob(w, r)
		})
		if err != nil {
			t.Errorf("status %d: %v", status, err)
			continue
		}
		if raw, err := io.ReadAll(content); string(raw) != blobText || err != nil || content.Offset != 0 {
			t.Errorf("status %d: %q from %d, %v", status, raw, content.Offset, err)
		}
	}
}

func TestAServerWithoutRangeBeginsAtTheBeginning(t *testing.T) {
	content, err := ask(t, 4, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, blobText) })
	if err != nil {
		t.Fatal(err)
	}
	if content.Offset != 0 {
		t.Errorf("offset %d", content.Offset)
	}
}
