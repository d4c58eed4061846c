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
	// blink is longer than what is written at once, and shorter than what waits for
	// something to supersede it.
	blink = 500 * time.Millisecond
	// moment is longer than anything that waits to be written.
	moment = 2 * time.Second
)

// world is an agent on a fake runtime, in a synctest bubble: time passes when all
// goroutines wait.
type world struct {
	*testing.T
	figures *prometheus.Registry
	runtime *runtimetest.Fake
	agent   *nodeagent.Agent
	api     *api
	keys    nodeagent.Credentials
	set     *v1alpha1.NodeImageSet
	stop    func()
}

// api keeps what the agent writes.
type api struct {
	sync.Mutex
	writes []v1alpha1.NodeImageSetStatus
	err    error
}

func (a *api) WriteStatus(_ context.Context, _ types.UID, status v1alpha1.NodeImageSetStatus) error {
	a.Lock()
	defer a.Unlock()
	if a.err != nil {
		return a.err
	}
	a.writes = append(a.writes, *status.DeepCopy())
	return nil
}

func (a *api) all() []v1alpha1.NodeImageSetStatus {
	a.Lock()
	defer a.Unlock()
	return slices.Clone(a.writes)
}

// bubble runs a test with an agent that has no spec yet.
func bubble(t *testing.T, test func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			T: t, runtime: runtimetest.NewFake(), api: &api{},
			set: &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node", UID: "1"}, Spec: v1alpha1.NodeImageSetSpec{NodeName: "node"}},
		}
		w.start()
		defer func() { w.stop() }()
		test(w)
	})
}

// start starts an agent, as after a restart of its process.
func (w *world) start() {
	w.figures = prometheus.NewRegistry()
	w.agent = nodeagent.New(nodeagent.Options{
		Metrics: nodeagent.NewMetrics(w.figures),
		Runtime: w.runtime, Status: w.api, MaxParallelPulls: 2, NoProgressTimeout: noProgress, VerifyInterval: verify,
		Credentials: w.keys, Log: testr.NewWithOptions(w.T, testr.Options{}),
	})
	ctx, cancel := context.WithCancel(w.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.agent.Run(ctx)
	}()
	w.stop = func() {
		cancel()
		<-ended
	}
	synctest.Wait()
}

// apply gives the agent a spec of these entries.
func (w *world) apply(entries ...v1alpha1.NodeImage) {
	w.Helper()
	w.set.Generation++
	w.set.Spec.ImageSet = entries
	w.agent.Apply(w.set.DeepCopy())
	synctest.Wait()
}

func (w *world) pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // of the synctest bubble's clock
	synctest.Wait()
}

// status is what was written last of an image.
func (w *world) status(name string) v1alpha1.NodeImageStatus {
	w.Helper()
	writes := w.api.all()
	if len(writes) == 0 {
		w.Fatal("no status was written")
	}
	for _, s := range writes[len(writes)-1].Images {
		if s.Name == name {
			return s
		}
	}
	w.Fatalf("no status of %s in %+v", name, writes[len(writes)-1].Images)
	return v1alpha1.NodeImageStatus{}
}

func (w *world) ready() metav1.Condition {
	w.Helper()
	writes := w.api.all()
	c := meta.FindStatusCondition(writes[len(writes)-1].Conditions, v1alpha1.ConditionReady)
	if c == nil {
		w.Fatal("no condition Ready")
	}
	return *c
}

func (w *world) state(name string, want v1alpha1.ImageState, reason string) {
	w.Helper()
	if s := w.status(name); s.State != want || s.Reason != reason {
		w.Fatalf("%s is %s %q (%s), want %s %q", name, s.State, s.Reason, s.Message, want, reason)
	}
}

// push puts an image of three layers into registries under "app:TAG".
func (w *world) push(tag string, places ...*runtimetest.Registry) digest.Digest {
	w.Helper()
	image, err := images.Image(images.Options{Layers: images.Layers(tag, 3, images.KiB), Seed: tag})
	if err != nil {
		w.Fatal(err)
	}
	for _, place := range places {
		if err := place.Push("team/app:"+tag, image); err != nil {
			w.Fatal(err)
		}
	}
	d, err := image.Digest()
	if err != nil {
		w.Fatal(err)
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

// figure is a metric with these labels: the value of a counter, or how often a histogram
// was observed.
func (w *world) figure(name string, labels ...string) float64 {
	w.Helper()
	families, err := w.figures.Gather()
	if err != nil {
		w.Fatal(err)
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
