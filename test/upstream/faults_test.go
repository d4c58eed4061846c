// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/test/distribution"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

func TestAnswer(t *testing.T) {
	for status, code := range map[int]string{
		401: "UNAUTHORIZED", 403: "DENIED", 404: "MANIFEST_UNKNOWN", 429: "TOOMANYREQUESTS", 500: "UNKNOWN",
	} {
		f := start(t, upstream.Options{})
		f.Inject(upstream.Manifests, 2, upstream.Answer(status))
		for range 2 {
			got, body, err := f.get(f.manifest())
			if err != nil || got != status || !strings.Contains(string(body), code) {
				t.Errorf("GET = %d %s, %v; want %d %s", got, body, err, status, code)
			}
			f.wantStatus(200, f.blob()) // no match, and not counted
		}
		f.wantStatus(200, f.manifest()) // the two are used up
	}
}

func TestEcho(t *testing.T) {
	f := start(t, upstream.Options{})
	f.Protect("", &upstream.Auth{Scheme: upstream.Bearer, IdentityToken: "identity", Users: map[string]string{"ann": "secret"}})
	f.Inject(upstream.Manifests, 0, upstream.Echo(403))
	f.wantStatus(401, f.manifest()) // nothing to repeat
	for want, auth := range map[string]authn.Authenticator{
		"no access for ann:secret, Bearer ": &authn.Basic{Username: "ann", Password: "secret"},
		"no access for identity, Bearer ":   authn.FromConfig(authn.AuthConfig{IdentityToken: "identity"}),
	} {
		if _, err := f.pull("team/app:1.0", remote.WithAuth(auth)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("pull = %v, want %q", err, want)
		}
	}
	const basic = "Basic YW5uOnNlY3JldA=="
	status, body, err := f.get(f.manifest(), "Authorization: "+basic)
	if want := "no access for ann:secret, " + basic; status != 403 || err != nil || !strings.Contains(string(body), want) {
		t.Errorf("GET = %d %s, %v; want 403 %s", status, body, err, want)
	}
}

func TestAFaultLastsUntilItIsRemoved(t *testing.T) {
	f := start(t, upstream.Options{})
	remove := f.Inject(upstream.Any, 0, upstream.Answer(500))
	for range 5 {
		f.wantStatus(500, f.blob())
	}
	remove()
	f.wantStatus(200, f.blob())
	remove() // again does no harm
}

func TestMatches(t *testing.T) {
	digest := "sha256:1"
	request := upstream.Request{Client: "10.0.0.1", Kind: distribution.Tag, Repository: "team/app", Digest: digest}
	for name, test := range map[string]struct {
		match upstream.Match
		want  bool
	}{
		"any":              {upstream.Any, true},
		"blobs":            {upstream.Blobs, false},
		"manifests":        {upstream.Manifests, true},
		"by tag of digest": {upstream.Of(digest), true},
		"other digest":     {upstream.Of("sha256:2"), false},
		"repository":       {upstream.In("team/app"), true},
		"other repository": {upstream.In("team"), false},
		"client":           {upstream.From("10.0.0.1"), true},
		"other client":     {upstream.From("10.0.0.10"), false},
		"all":              {upstream.All(upstream.Manifests, upstream.In("team/app")), true},
		"not all":          {upstream.All(upstream.Blobs, upstream.In("team/app")), false},
	} {
		if got := test.match(request); got != test.want {
			t.Errorf("%s = %v", name, got)
		}
	}
}

func TestResetInTheMiddleOfABlob(t *testing.T) {
	for name, opts := range map[string]upstream.Options{"HTTP": {}, "HTTPS": {TLS: true}} {
		t.Run(name, func(t *testing.T) {
			f := start(t, opts)
			f.Inject(upstream.Blobs, 1, upstream.ResetAfter(300_000))
			config, _ := f.image.ConfigName()
			f.wantStatus(200, "/v2/team/app/blobs/"+config.String()) // too short to be reset
			status, body, err := f.get(f.blob())
			if status != 200 || len(body) != 300_000 || !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("GET = %d, %d bytes, %v; want 300000 bytes and a reset", status, len(body), err)
			}
			_, rest, err := f.get(f.blob(), "Range: bytes=300000-")
			if err != nil {
				t.Fatal(err)
			}
			f.settled()
			_, whole, _ := f.get(f.blob())
			if string(body)+string(rest) != string(whole) {
				t.Error("what came before the reset and the resumed rest are not the blob")
			}
		})
	}
}

func TestStallUntilRemoved(t *testing.T) {
	f := start(t, upstream.Options{})
	remove := f.Inject(upstream.Blobs, 1, upstream.StallAfter(1000))
	response, err := f.do(http.MethodGet, f.blob())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.CopyN(io.Discard, response.Body, 1000); err != nil {
		t.Fatal(err)
	}
	if f.Requests()[0].Done {
		t.Error("the request ended instead of stalling")
	}
	f.wantStatus(200, f.blob()) // only one stalls
	remove()
	rest, err := io.Copy(io.Discard, response.Body)
	if err != nil || rest < images.MiB-1000 {
		t.Errorf("after the stall came %d bytes, %v", rest, err)
	}
}

func TestCloseEndsAStall(t *testing.T) {
	f := start(t, upstream.Options{})
	f.Inject(upstream.Blobs, 0, upstream.StallAfter(0))
	response, err := f.do(http.MethodGet, f.blob())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if requests := f.Requests(); !requests[0].Done || requests[0].Complete {
		t.Errorf("Close returned before the request ended: %+v", requests[0])
	}
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("the body ended as if it were whole")
	}
}

func TestRateIsSharedByAllConnections(t *testing.T) {
	f := start(t, upstream.Options{})
	f.SetRate(8 * images.MiB)
	begin := time.Now()
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			if _, _, err := f.get(f.blob()); err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	// 2 MiB at 8 MiB/s; what it takes beyond is the machine's.
	if took := time.Since(begin); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("2 MiB at 8 MiB/s took %s", took)
	}
}

func TestALowRateHoldsForLargeWrites(t *testing.T) {
	f := start(t, upstream.Options{})
	f.SetRate(256 * images.KiB)
	begin := time.Now()
	if _, _, err := f.get(f.blob(), "Range: bytes=0-65535"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("64 KiB at 256 KiB/s took %s", took)
	}
}

func TestRateChangesInTheMiddleOfABlob(t *testing.T) {
	f := start(t, upstream.Options{})
	f.SetRate(1) // the rest of the blob would take days
	response, err := f.do(http.MethodGet, f.blob())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	f.SetRate(0)
	if n, err := io.Copy(io.Discard, response.Body); err != nil || n < images.MiB {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestLatency(t *testing.T) {
	f := start(t, upstream.Options{})
	f.SetLatency(50 * time.Millisecond)
	begin := time.Now()
	f.wantStatus(200, "/v2/")
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("answered after %s", took)
	}
}

func TestCutOffByRefusing(t *testing.T) {
	f := start(t, upstream.Options{})
	f.Inject(upstream.Blobs, 1, upstream.StallAfter(1000))
	response, err := f.do(http.MethodGet, f.blob())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if err := f.CutOff(upstream.Refuse); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err == nil {
		t.Error("the cut left the connection open")
	}
	if _, _, err := f.get(f.manifest()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("GET = %v, want connection refused", err)
	}
	if err := f.Restore(); err != nil {
		t.Fatal(err)
	}
	f.wantStatus(200, f.manifest())
}

func TestCutOffByHanging(t *testing.T) {
	f := start(t, upstream.Options{})
	f.SetRate(1) // keeps the first request in the middle of its body
	before, err := f.do(http.MethodGet, f.blob())
	if err != nil {
		t.Fatal(err)
	}
	defer before.Body.Close()
	if err := f.CutOff(upstream.Hang); err != nil {
		t.Fatal(err)
	}
	f.SetRate(0)
	during := make(chan error, 1)
	go func() {
		_, _, err := f.get(f.manifest())
		during <- err
	}()
	f.await("the request during the outage", func(r upstream.Requests) bool { return len(r) == 2 })
	select {
	case err := <-during:
		t.Errorf("a request was answered during the outage: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	if requests := f.Requests(); requests[0].Complete || requests[1].Status != 0 {
		t.Errorf("during the outage: %+v", requests)
	}
	if err := f.Restore(); err != nil {
		t.Fatal(err)
	}
	if err := <-during; err != nil {
		t.Errorf("the request that waited: %v", err)
	}
	if n, err := io.Copy(io.Discard, before.Body); err != nil || n < images.MiB {
		t.Errorf("the body on the way: %d bytes, %v", n, err)
	}
}
