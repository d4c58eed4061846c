// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
	"github.com/sluice-dev/sluice/internal/policy"
)

// fakeServer is a cache, and an API server that accepts each status.
type fakeServer struct {
	client.Client
	nodes      []corev1.Node
	sets       []v1alpha1.NodeImageSet
	prefetches []v1alpha1.ImagePrefetch
	lists      int
}

func (f *fakeServer) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	f.lists++
	switch list := list.(type) {
	case *corev1.NodeList:
		list.Items = f.nodes
	case *v1alpha1.NodeImageSetList:
		list.Items = f.sets
	case *v1alpha1.ImagePrefetchList:
		list.Items = f.prefetches
	}
	return nil
}

func (f *fakeServer) Status() client.SubResourceWriter { return statusWriter{s: &statusServer{}} }

func TestPassesKeepAnInterval(t *testing.T) {
	metrics, err := NewMetrics(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	server, clock := &fakeServer{}, clocktesting.NewFakePassiveClock(noon)
	r := &Reconciler{Client: server, APIReader: server, Clock: clock, Metrics: metrics, Limits: plan.DefaultLimits(), DefaultPolicy: policy.DefaultAllow}
	for _, step := range []struct {
		because string
		after   time.Duration
		lists   int
		delay   time.Duration
	}{
		{"the first event is served at once, and the written objects are read from the API server", 0, 6, 0},
		{"the next one waits until the interval is over", 20 * time.Millisecond, 0, passInterval - 20*time.Millisecond},
		{"and is then served from the cache", passInterval, 4, 0},
		{"an event after a longer time is served at once", time.Hour, 4, 0},
	} {
		clock.SetTime(noon.Add(step.after))
		server.lists = 0
		result, err := r.Reconcile(t.Context(), clusterKey{})
		if err != nil || server.lists != step.lists || result.RequeueAfter != step.delay {
			t.Errorf("%s: %d lists and again after %v, want %d and %v; error %v", step.because, server.lists, result.RequeueAfter, step.lists, step.delay, err)
		}
	}
}

// BenchmarkPass measures a pass in which the set of one node has changed, when prefetches of four
// images each are on all nodes.
func BenchmarkPass(b *testing.B) {
	for _, size := range []struct{ nodes, prefetches int }{{100, 10}, {1000, 10}, {5000, 10}, {5000, 100}} {
		b.Run(fmt.Sprintf("nodes=%d/prefetches=%d", size.nodes, size.prefetches), func(b *testing.B) {
			server := &fakeServer{}
			var entries []v1alpha1.NodeImage
			var answers []v1alpha1.NodeImageStatus
			for p := range size.prefetches {
				prefetch := v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{
					Namespace: "team", Name: fmt.Sprintf("p%d", p), UID: types.UID(fmt.Sprint(p)), Generation: 1, ResourceVersion: "1"}}
				for i := range 4 {
					name := fmt.Sprintf("ghcr.io/org/app-%d-%d:v1", p, i)
					prefetch.Spec.Images = append(prefetch.Spec.Images, v1alpha1.ImageReference(name))
					prefetch.Status.Images = append(prefetch.Status.Images, v1alpha1.ImageStatus{Name: name, Digest: one})
					entries = append(entries, v1alpha1.NodeImage{Name: name, Digest: one, RegistryPolicy: v1alpha1.RegistryPolicyMirror,
						ImageDownloadRetryLimit: new(int32(3)), Retention: v1alpha1.RetentionPinned})
					answers = append(answers, present(name, one))
				}
				prefetch.Spec.Retention = v1alpha1.RetentionPinned
				server.prefetches = append(server.prefetches, prefetch)
			}
			for n := range size.nodes {
				name := fmt.Sprintf("node-%04d", n)
				server.nodes = append(server.nodes, corev1.Node{
					ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: "1", Labels: map[string]string{corev1.LabelTopologyZone: "z"}},
					Status: corev1.NodeStatus{NodeInfo: corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64"},
						Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}},
				})
				server.sets = append(server.sets, v1alpha1.NodeImageSet{
					ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), ResourceVersion: "1", Generation: 1},
					Spec:       v1alpha1.NodeImageSetSpec{NodeName: name, ImageSet: entries},
					Status:     v1alpha1.NodeImageSetStatus{ObservedGeneration: 1, Images: answers},
				})
			}
			metrics, err := NewMetrics(prometheus.NewRegistry())
			if err != nil {
				b.Fatal(err)
			}
			clock := clocktesting.NewFakePassiveClock(noon)
			r := &Reconciler{Client: server, APIReader: server, Clock: clock, Metrics: metrics,
				Recorder: &events.FakeRecorder{}, Limits: plan.DefaultLimits(), DefaultPolicy: policy.DefaultAllow}
			pass := func(i int) {
				clock.SetTime(clock.Now().Add(passInterval))
				server.sets[i%size.nodes].ResourceVersion = fmt.Sprint(i + 2)
				if _, err := r.Reconcile(b.Context(), clusterKey{}); err != nil {
					b.Fatal(err)
				}
			}
			pass(0)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				pass(i)
			}
		})
	}
}
