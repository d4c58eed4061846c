// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/runtimetest"
)

const (
	noProgress = time.Minute
	verify     = 10 * time.Minute
	// blink is longer than the delay of a change that the controller waits for, and shorter than
	// transientDelay.
	blink = 500 * time.Millisecond
	// moment is longer than transientDelay.
	moment = 2 * time.Second
)

// agentTest is a test of an agent on a fake runtime, in a synctest bubble: time passes when all
// goroutines wait.
type agentTest struct {
	*testing.T
	metrics     *prometheus.Registry
	runtime     *runtimetest.Fake
	agent       *nodeagent.Agent
	written     *statusRecorder
	credentials nodeagent.Credentials
	ofNode      nodeagent.NodeCredentials
	set         *v1alpha1.NodeImageSet
	stop        func()
}

// statusRecorder records the statuses that the agent writes. It fails with err if that is set.
type statusRecorder struct {
	sync.Mutex
	writes []v1alpha1.NodeImageSetStatus
	err    error
	failed int // writes
	// takes is how long each write is on its way.
	takes time.Duration
}

func (r *statusRecorder) WriteStatus(_ context.Context, _ types.UID, status v1alpha1.NodeImageSetStatus) error {
	time.Sleep(r.takes) //nolint:forbidigo // of the synctest bubble's clock
	r.Lock()
	defer r.Unlock()
	if r.err != nil {
		r.failed++
		return r.err
	}
	r.writes = append(r.writes, *status.DeepCopy())
	return nil
}

func (r *statusRecorder) all() []v1alpha1.NodeImageSetStatus {
	r.Lock()
	defer r.Unlock()
	return slices.Clone(r.writes)
}

// lastWritten is the status that was written last.
func (a *agentTest) lastWritten() v1alpha1.NodeImageSetStatus {
	all := a.written.all()
	return all[len(all)-1]
}

// withAgent runs a test in a synctest bubble, with an agent that has no spec yet.
func withAgent(t *testing.T, test func(a *agentTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &agentTest{
			T: t, runtime: runtimetest.NewFake(), written: &statusRecorder{},
			set: &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "1"}, Spec: v1alpha1.NodeImageSetSpec{NodeName: "node"}},
		}
		a.start()
		defer func() { a.stop() }()
		test(a)
	})
}

// start starts an agent, as after a restart of its process.
func (a *agentTest) start() {
	a.metrics = prometheus.NewRegistry()
	metrics, err := nodeagent.NewMetrics(a.metrics)
	if err != nil {
		a.Fatal(err)
	}
	a.agent = nodeagent.New(nodeagent.Options{
		Metrics: metrics,
		Runtime: a.runtime, Status: a.written, MaxParallelPulls: 2, NoProgressTimeout: noProgress, VerifyInterval: verify,
		Credentials: a.credentials, NodeCredentials: a.ofNode, Log: testr.NewWithOptions(a.T, testr.Options{}),
	})
	ctx, cancel := context.WithCancel(a.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		a.agent.Run(ctx)
	}()
	a.stop = func() {
		cancel()
		<-ended
	}
	synctest.Wait()
}

// apply gives the agent a spec of these entries.
func (a *agentTest) apply(entries ...v1alpha1.NodeImage) {
	a.Helper()
	a.set.Generation++
	a.set.Spec.ImageSet = entries
	a.agent.Apply(a.set.DeepCopy())
	synctest.Wait()
}

// advance lets time pass, and waits until the agent has done what was due.
func (a *agentTest) advance(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // of the synctest bubble's clock
	synctest.Wait()
}

// status is what was written last for an image.
func (a *agentTest) status(name string) v1alpha1.NodeImageStatus {
	a.Helper()
	writes := a.written.all()
	if len(writes) == 0 {
		a.Fatal("no status was written")
	}
	for _, s := range writes[len(writes)-1].Images {
		if s.Name == name {
			return s
		}
	}
	a.Fatalf("no status of %s in %+v", name, writes[len(writes)-1].Images)
	return v1alpha1.NodeImageStatus{}
}

// ready is the condition Ready that was written last.
func (a *agentTest) ready() metav1.Condition {
	a.Helper()
	writes := a.written.all()
	c := meta.FindStatusCondition(writes[len(writes)-1].Conditions, v1alpha1.ConditionReady)
	if c == nil {
		a.Fatal("no condition Ready")
	}
	return *c
}

// state expects an image's state and reason in the last status.
func (a *agentTest) state(name string, want v1alpha1.ImageState, reason string) {
	a.Helper()
	if s := a.status(name); s.State != want || s.Reason != reason {
		a.Fatalf("%s is %s %q (%s), want %s %q", name, s.State, s.Reason, s.Message, want, reason)
	}
}

// push puts an image of three layers into registries, under "team/app:TAG".
func (a *agentTest) push(tag string, places ...*runtimetest.Registry) digest.Digest {
	a.Helper()
	image, err := images.Image(images.Options{Layers: images.Layers(tag, 3, images.KiB), Seed: tag})
	if err != nil {
		a.Fatal(err)
	}
	for _, place := range places {
		if err := place.Push("team/app:"+tag, image); err != nil {
			a.Fatal(err)
		}
	}
	d, err := image.Digest()
	if err != nil {
		a.Fatal(err)
	}
	return digest.Digest(d.String())
}

func name(tag string) string { return "registry.test/team/app:" + tag }

func seedOf(tag, request string) v1alpha1.NodeImage {
	return v1alpha1.NodeImage{Name: name(tag), RegistryPolicy: v1alpha1.RegistryPolicyDefault, Request: request}
}

func peerOf(tag string, d digest.Digest) v1alpha1.NodeImage {
	return v1alpha1.NodeImage{Name: name(tag), RegistryPolicy: v1alpha1.RegistryPolicyMirror, Digest: d.String()}
}

// metric is the value of a counter with these label values, or the number of observations of such a
// histogram.
func (a *agentTest) metric(name string, labels ...string) float64 {
	a.Helper()
	families, err := a.metrics.Gather()
	if err != nil {
		a.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		for _, m := range family.GetMetric() {
			var values []string
			for _, label := range m.GetLabel() { // sorted by name
				values = append(values, label.GetValue())
			}
			if slices.Equal(values, labels) {
				return m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	return 0
}
