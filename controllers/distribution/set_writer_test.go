// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

// brokenServer accepts writes of NodeImageSets, except for some nodes.
type brokenServer struct {
	client.Client
	mu     sync.Mutex
	fails  map[string]error
	writes []string
}

func (b *brokenServer) Create(_ context.Context, object client.Object, _ ...client.CreateOption) error {
	return b.write("create", object)
}

func (b *brokenServer) Update(_ context.Context, object client.Object, _ ...client.UpdateOption) error {
	return b.write("update", object)
}

func (b *brokenServer) write(verb string, object client.Object) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.writes = append(b.writes, verb+" "+object.GetName())
	return b.fails[object.GetName()]
}

func TestSeedsAreDemotedBeforeOthersAreMade(t *testing.T) {
	image := func(policy v1alpha1.RegistryPolicy) []v1alpha1.NodeImage {
		return []v1alpha1.NodeImage{{Name: appV1, RegistryPolicy: policy}}
	}
	sets := v1alpha1.SchemeGroupVersion.WithResource("nodeimagesets").GroupResource()
	conflict := apierrors.NewConflict(sets, "b", errors.New("changed"))
	tests := []struct {
		because string
		fails   error
		writes  []string
		retried bool
		failed  bool
	}{
		{"one seed is demoted, then another is made; a third node does not matter", nil, []string{"update b", "create a", "create c"}, false, false},
		{"while the seed cannot be demoted, no other is made", errors.New("rejected"), []string{"update b", "create c"}, false, true},
		{"nor while its set must be observed again", conflict, []string{"update b", "create c"}, true, false},
	}
	for _, test := range tests {
		t.Run(test.because, func(t *testing.T) {
			server := &brokenServer{fails: map[string]error{"b": test.fails}}
			metrics, err := NewMetrics(prometheus.NewRegistry())
			if err != nil {
				t.Fatal(err)
			}
			r := &Reconciler{Client: server, Clock: clocktesting.NewFakePassiveClock(noon), Metrics: metrics}
			seen := &observation{nodes: map[string]*observedNode{}}
			for _, name := range []string{"a", "b", "c", "foreign"} {
				seen.nodes[name] = &observedNode{planNode: plan.Node{Name: name}, uid: types.UID(name), foreignSet: name == "foreign"}
			}
			seen.nodes["b"].set = &v1alpha1.NodeImageSet{
				ObjectMeta: metav1.ObjectMeta{Name: "b", ResourceVersion: "1"},
				Spec:       v1alpha1.NodeImageSetSpec{NodeName: "b", ImageSet: image(v1alpha1.RegistryPolicyDefault)},
			}
			got := r.writeSets(t.Context(), seen, plan.Step{Sets: map[string][]v1alpha1.NodeImage{
				"a": image(v1alpha1.RegistryPolicyDefault), "b": image(v1alpha1.RegistryPolicyMirror), "c": image(v1alpha1.RegistryPolicyMirror),
				"foreign": image(v1alpha1.RegistryPolicyDefault), "gone": image(v1alpha1.RegistryPolicyDefault),
			}})
			slices.Sort(server.writes[1:]) // these are written in parallel
			if !slices.Equal(server.writes, test.writes) {
				t.Errorf("wrote %q, want %q", server.writes, test.writes)
			}
			if got.retryAt.IsZero() == test.retried || (got.err() != nil) != test.failed {
				t.Errorf("again at %v, error %v", got.retryAt, got.err())
			}
			if _, remembered := r.writtenSets.entries[client.ObjectKey{Name: "b"}]; remembered != (test.fails == nil) {
				t.Errorf("the write is remembered: %v", remembered)
			}
		})
	}
}

func TestNodesOfAWaveAreCounted(t *testing.T) {
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	peer := func(name string) v1alpha1.NodeImage {
		return v1alpha1.NodeImage{Name: name, RegistryPolicy: v1alpha1.RegistryPolicyMirror}
	}
	write := func(before []v1alpha1.NodeImage, after ...v1alpha1.NodeImage) *setWrite {
		return &setWrite{before: before, set: &v1alpha1.NodeImageSet{Spec: v1alpha1.NodeImageSetSpec{ImageSet: after}}}
	}
	metrics.countAssignments([]*setWrite{
		write(nil, peer(appV1), peer(webV1)),
		write([]v1alpha1.NodeImage{peer(webV1)}, peer(appV1), peer(webV1)), // it had webV1 before
		write(nil, v1alpha1.NodeImage{Name: webV1, RegistryPolicy: v1alpha1.RegistryPolicyDefault}),
	}, func(string) bool { return true })
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == "sluice_wave_nodes" {
			if h := family.GetMetric()[0].GetHistogram(); h.GetSampleCount() != 2 || h.GetSampleSum() != 3 {
				t.Errorf("%d waves of %v nodes together, want 2 of 3", h.GetSampleCount(), h.GetSampleSum())
			}
			return
		}
	}
	t.Error("there is no sluice_wave_nodes")
}

func TestWhichFailedWritesMayBeStored(t *testing.T) {
	sets := v1alpha1.SchemeGroupVersion.WithResource("nodeimagesets").GroupResource()
	for because, test := range map[string]struct {
		err  error
		want bool
	}{
		"success":                                  {nil, false},
		"the connection broke":                     {errors.New("connection reset by peer"), true},
		"the server gave up waiting":               {apierrors.NewTimeoutError("etcd", 1), true},
		"the server had trouble":                   {apierrors.NewInternalError(errors.New("etcd")), true},
		"there is an object that was not observed": {apierrors.NewAlreadyExists(sets, "a"), true},
		"the agent wrote its status":               {apierrors.NewConflict(sets, "a", errors.New("changed")), false},
		"a rejection, which changes nothing":       {apierrors.NewForbidden(sets, "a", errors.New("no")), false},
	} {
		if got := mayBeStored(test.err); got != test.want {
			t.Errorf("%s: got %v", because, got)
		}
	}
}
