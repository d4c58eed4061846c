// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/nodeagent/containerd/mirror"
)

func TestTheNodeIsLookedAtAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		var mu sync.Mutex
		var wrong []nodeagent.Finding
		var looked []time.Duration
		var told []string
		noticed := make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		examine := func(context.Context) []nodeagent.Finding {
			mu.Lock()
			defer mu.Unlock()
			looked = append(looked, time.Since(began))
			return append([]nodeagent.Finding{good("containerd", "answers")}, wrong...)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			examineRepeatedly(ctx, noticed, examine, func(found []nodeagent.Finding) {
				var subjects []string
				for _, f := range found {
					subjects = append(subjects, f.Subject)
				}
				mu.Lock()
				defer mu.Unlock()
				told = append(told, strings.Join(subjects, " "))
			})
		}()
		for _, step := range []struct {
			reason string
			happen func()
			after  time.Duration
			want   string
		}{
			{"that nothing is wrong is told", func() {}, 50 * time.Second, ""},
			{"something is wrong a minute later", func() { wrong = []nodeagent.Finding{failure("disk", "is full")} }, 11 * time.Minute, "disk"},
			{"a pull meets with more", func() {
				wrong = append(wrong, warning("mirror", "is gone"))
				noticed <- struct{}{}
			}, time.Second, "disk mirror"},
			{"all is mended", func() { wrong = nil }, maxExamineInterval, ""},
		} {
			mu.Lock()
			step.happen()
			mu.Unlock()
			<-time.After(step.after)
			mu.Lock()
			if len(told) == 0 || told[len(told)-1] != step.want {
				t.Errorf("%s: told %q", step.reason, told)
			}
			mu.Unlock()
		}
		<-time.After(time.Hour)
		cancel()
		<-ended
		if want := []string{"", "disk", "disk mirror", ""}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
		if want := []time.Duration{0, time.Minute, 3 * time.Minute, 7 * time.Minute}; !slices.Equal(looked[:4], want) {
			t.Errorf("looked after %v, want %v", looked[:4], want)
		}
		if last := looked[len(looked)-1] - looked[len(looked)-2]; last != maxExamineInterval {
			t.Errorf("looked every %v in the end", last)
		}
	})
}

// expectFinding expects a severity, and words in the message.
func expectFinding(t *testing.T, reason string, got nodeagent.Finding, want nodeagent.Severity, words string) {
	t.Helper()
	if got.Severity != want || !strings.Contains(got.Message, words) {
		t.Errorf("%s: %s %s: %s; want %s and %q", reason, got.Severity, got.Subject, got.Message, want, words)
	}
}

func TestTheFoldersOfContainerdAndTheAgent(t *testing.T) {
	const ours = "/etc/containerd/certs.d"
	for _, tt := range []struct {
		reason, theirs, ours string
		want                 nodeagent.Severity
		words                string
	}{
		{"the same", ours, ours, nodeagent.SeverityOK, ours},
		{"a slash says nothing", ours + "/", ours, nodeagent.SeverityOK, ours},
		{"the same list", ours + ":/b", ours + ":/b", nodeagent.SeverityOK, "/b"},
		{"an older containerd does not say", "", ours, nodeagent.SeverityOK, "does not say"},
		{"where nothing is configured, Docker's folder comes second", defaultConfigPath, ours, nodeagent.SeverityOK, "would also read /etc/docker/certs.d"},
		{"another folder", "/opt/certs.d", ours, nodeagent.SeverityWarning, "containerd reads /opt/certs.d for the kubelet and the agent " + ours},
		{"the agent reads less", ours + ":/b", ours, nodeagent.SeverityWarning, "/b"},
		{"another order", "/b:" + ours, ours + ":/b", nodeagent.SeverityWarning, "the same"},
	} {
		expectFinding(t, tt.reason, examineConfigPath(tt.theirs, tt.ours), tt.want, tt.words)
	}
}

func TestWhatIsSaidOfSnapshotters(t *testing.T) {
	for _, tt := range []struct {
		reason, snapshotter string
		ofRuntimes          map[string]string
		want                string
	}{
		{"one for all", "overlayfs", map[string]string{"runc": "", "kata": "overlayfs"}, "overlayfs"},
		{
			"the transfer service knows only overlayfs by itself", "native", nil,
			"native; a seed unpacks an image only after it has come, unless unpack_config of containerd's transfer service names it",
		},
		{
			"runtime classes have others", "overlayfs", map[string]string{"runc": "", "kata": "devmapper", "cloud": "native"},
			"overlayfs; runtimes that have another one unpack when a Pod starts: cloud (native), kata (devmapper)",
		},
	} {
		got := examineSnapshotter(tt.snapshotter, tt.ofRuntimes)
		if got.Severity != nodeagent.SeverityOK || got.Message != tt.want {
			t.Errorf("%s: %s %q, want %q", tt.reason, got.Severity, got.Message, tt.want)
		}
	}
}

func TestWhetherLayersAreThrownAway(t *testing.T) {
	expectFinding(t, "they are", examineDiscard("true"), nodeagent.SeverityWarning, "set it to false")
	expectFinding(t, "they are not", examineDiscard("false"), nodeagent.SeverityOK, "false")
	expectFinding(t, "an older containerd does not say", examineDiscard(""), nodeagent.SeverityOK, "does not say")
}

func TestADiskThatIsNotSeen(t *testing.T) {
	here, away := t.TempDir(), t.TempDir()+"/away"
	r := &Runtime{Options: Options{MinFreeDisk: 1e-9}}
	expectFinding(t, "both folders", r.examineDisk(daemonFacts{contentDir: here, snapshotDir: here}), nodeagent.SeverityOK, here)
	expectFinding(t, "neither folder", r.examineDisk(daemonFacts{contentDir: away, snapshotDir: away}), nodeagent.SeverityWarning, "set agent.containerd.root")
	expectFinding(t, "not the snapshotter's", r.examineDisk(daemonFacts{contentDir: here, snapshotDir: away}), nodeagent.SeverityWarning, away)
	r.MinFreeDisk = 0.999999
	expectFinding(t, "too little is free", r.examineDisk(daemonFacts{contentDir: here, snapshotDir: here}), nodeagent.SeverityError, "nothing is pulled")
	r.MinFreeDisk = 0
	expectFinding(t, "the check is off", r.examineDisk(daemonFacts{contentDir: away, snapshotDir: away}), nodeagent.SeverityOK, "not checked")
}

func TestAMirrorThatDoesNotAnswer(t *testing.T) {
	refused := errors.New("connection refused")
	host := func(address string) docker.RegistryHost {
		return docker.RegistryHost{Scheme: "http", Host: address, Path: "/v2"}
	}
	for _, tt := range []struct {
		reason, address string
		err             error
		want            nodeagent.Severity
		words           string
	}{
		{"it answers", "10.0.0.1:30020", nil, nodeagent.SeverityOK, "answers"},
		{"it may come up", "10.0.0.1:30020", mirror.ErrStarting, nodeagent.SeverityOK, "not listen yet"},
		{"it is away", "10.0.0.1:30020", refused, nodeagent.SeverityWarning, "connection refused: see that it runs"},
		{"it is on the node", "127.0.0.1:30020", refused, nodeagent.SeverityWarning, "agent.hostNetwork"},
		{"it is on the node, by name", "localhost:30020", refused, nodeagent.SeverityWarning, "agent.hostNetwork"},
		{"it is on the node, by IPv6", "[::1]:30020", refused, nodeagent.SeverityWarning, "agent.hostNetwork"},
	} {
		got := examineMirror(host(tt.address), tt.err)
		expectFinding(t, tt.reason, got, tt.want, tt.words)
		if want := "mirror http://" + tt.address; got.Subject != want {
			t.Errorf("%s: about %q, want %q", tt.reason, got.Subject, want)
		}
	}
}
