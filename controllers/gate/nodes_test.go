// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

var began = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

// following is a Nodes that knows one Ready node, and the names that it tells of.
func following(t *testing.T) (*Nodes, *clocktesting.FakeClock, func() map[string]*hold.Node) {
	t.Helper()
	clock := clocktesting.NewFakeClock(began)
	nodes := &Nodes{
		Clock: clock, AgentTimeout: time.Minute, Agents: client.ObjectKey{Namespace: "sluice-system", Name: "sluice-agent"},
		known: map[string]*nodeRecord{}, changed: map[string]bool{},
	}
	var flushed map[string]*hold.Node
	nodes.OnChange(func(changed map[string]*hold.Node) { flushed = changed })
	next := func() map[string]*hold.Node {
		flushed = nil
		clock.Step(flushInterval)
		return flushed
	}
	nodes.putNode(readyNode(nil))
	if changed := next(); changed["node-1"] == nil {
		t.Fatalf("a new node is told of: %v", changed)
	}
	return nodes, clock, next
}

func readyNode(edit func(*corev1.Node)) *corev1.Node {
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", UID: "1", Labels: map[string]string{"pool": "web"}},
		Status: corev1.NodeStatus{
			NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: "linux"},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}},
		},
	}
	if edit != nil {
		edit(node)
	}
	return node
}

// nodeSet has one image, which its agent reports in a state.
func nodeSet(state v1alpha1.ImageState, edit func(*v1alpha1.NodeImageSet)) *v1alpha1.NodeImageSet {
	set := &v1alpha1.NodeImageSet{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", Generation: 2, OwnerReferences: []metav1.OwnerReference{{Kind: "Node", UID: "1"}}},
		Spec:       v1alpha1.NodeImageSetSpec{ImageSet: []v1alpha1.NodeImage{{Name: "app:v1"}}},
		Status: v1alpha1.NodeImageSetStatus{
			ObservedGeneration: 2, Images: []v1alpha1.NodeImageStatus{{Name: "app:v1", Digest: "sha256:1", State: state}},
		},
	}
	if edit != nil {
		edit(set)
	}
	return set
}

func snapshot(t *testing.T, nodes *Nodes) ([]hold.Node, time.Time) {
	t.Helper()
	all, until, err := nodes.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all, until
}

func only(t *testing.T, nodes *Nodes) hold.Node {
	t.Helper()
	all, _ := snapshot(t, nodes)
	if len(all) != 1 {
		t.Fatalf("%d nodes, want 1", len(all))
	}
	return all[0]
}

func TestChangesThatRolloutsMayWaitForAreTold(t *testing.T) {
	for _, tt := range []struct {
		reason  string
		change  func(*Nodes)
		flushed bool
	}{
		{"a label", func(n *Nodes) {
			n.putNode(readyNode(func(o *corev1.Node) { o.Labels = map[string]string{"pool": "gpu"} }))
		}, true},
		{"a taint", func(n *Nodes) {
			n.putNode(readyNode(func(o *corev1.Node) { o.Spec.Taints = []corev1.Taint{{Key: "x"}} }))
		}, true},
		{"a cordon", func(n *Nodes) { n.putNode(readyNode(func(o *corev1.Node) { o.Spec.Unschedulable = true })) }, true},
		{"not Ready", func(n *Nodes) { n.putNode(readyNode(func(o *corev1.Node) { o.Status.Conditions = nil })) }, true},
		{"another operating system", func(n *Nodes) {
			n.putNode(readyNode(func(o *corev1.Node) { o.Status.NodeInfo.OperatingSystem = "windows" }))
		}, true},
		{"the node is gone", func(n *Nodes) { n.dropNode(readyNode(nil)) }, true},
		{"a heartbeat", func(n *Nodes) {
			n.putNode(readyNode(func(o *corev1.Node) { o.Status.Conditions[0].LastHeartbeatTime = metav1.Now() }))
		}, false},
		{"an image is there", func(n *Nodes) { n.putSet(nodeSet(v1alpha1.ImagePresent, nil)) }, true},
		{"an image has failed", func(n *Nodes) { n.putSet(nodeSet(v1alpha1.ImageFailed, nil)) }, true},
		{"an image is withdrawn", func(n *Nodes) {
			n.putSet(nodeSet(v1alpha1.ImagePulling, func(s *v1alpha1.NodeImageSet) { s.Generation++ }))
		}, true},
		{"bytes came", func(n *Nodes) {
			n.putSet(nodeSet(v1alpha1.ImagePulling, func(s *v1alpha1.NodeImageSet) { s.Status.Images[0].PulledBytes = 7 }))
		}, false},
		{"the set is gone", func(n *Nodes) { n.dropSet(nodeSet(v1alpha1.ImagePulling, nil)) }, true},
		{"agents are not meant to run here any more", func(n *Nodes) { n.putDaemon(daemon("gpu")) }, true},
		{"another DaemonSet", func(n *Nodes) {
			other := daemon("gpu")
			other.Name = "other"
			n.putDaemon(other)
		}, false},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			nodes, _, next := following(t)
			nodes.putSet(nodeSet(v1alpha1.ImagePulling, nil))
			next()
			before, _ := snapshot(t, nodes)
			tt.change(nodes)
			changed := next()
			node, flushed := changed["node-1"]
			if flushed != tt.flushed {
				t.Errorf("flushed %v, want %t", changed, tt.flushed)
			}
			after, _ := snapshot(t, nodes)
			if flushed && (node == nil) != (len(after) == 0) || node != nil && !reflect.DeepEqual(*node, after[0]) {
				t.Errorf("told of %+v, but the snapshot is %+v", node, after)
			}
			if now, _ := nodes.snapshot(nodes.Clock.Now()); !reflect.DeepEqual(after, now) {
				t.Errorf("snapshot %+v, but it is %+v now", after, now)
			}
			if made := len(after) == 0 || &before[0] != &after[0]; made != tt.flushed {
				t.Errorf("a snapshot was made: %t, want %t", made, tt.flushed)
			}
		})
	}
}

func daemon(pool string) *appsv1.DaemonSet {
	d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "sluice-system", Name: "sluice-agent"}}
	d.Spec.Template.Spec.NodeSelector = map[string]string{"pool": pool}
	return d
}

func TestChangesAreCollected(t *testing.T) {
	nodes, clock, next := following(t)
	flushes := 0
	nodes.OnChange(func(map[string]*hold.Node) { flushes++ })
	for i := range 100 {
		nodes.putNode(readyNode(func(o *corev1.Node) { o.Spec.Unschedulable = i%2 == 0 }))
	}
	clock.Step(flushInterval)
	if flushes != 1 {
		t.Errorf("%d flushes, want 1", flushes)
	}
	if next(); flushes != 1 {
		t.Error("nothing changed, and it was told")
	}
}

func TestAnAgentThatLagsBehindIsDownAfterTheTimeout(t *testing.T) {
	nodes, clock, _ := following(t)
	behind := func(s *v1alpha1.NodeImageSet) { s.Generation++ }
	nodes.putSet(nodeSet(v1alpha1.ImagePresent, behind))
	since := clock.Now()
	if _, until := snapshot(t, nodes); !until.Equal(since.Add(time.Minute)) {
		t.Errorf("until %v, want a minute", until)
	}
	clock.Step(59 * time.Second)
	nodes.putSet(nodeSet(v1alpha1.ImagePresent, func(s *v1alpha1.NodeImageSet) { s.Generation += 2 }))
	if only(t, nodes).Down {
		t.Error("down before the timeout")
	}
	clock.Step(time.Second)
	if !only(t, nodes).Down {
		t.Error("not down after the timeout: a further change of the spec does not lengthen it")
	}
	nodes.putSet(nodeSet(v1alpha1.ImagePresent, nil))
	if _, until := snapshot(t, nodes); only(t, nodes).Down || !until.IsZero() {
		t.Error("down although it has answered")
	}
}

func TestAnAgentThatDiesInTheMiddleOfAPullIsDown(t *testing.T) {
	nodes, clock, next := following(t)
	pulls := func(beat time.Time) *v1alpha1.NodeImageSet {
		return nodeSet(v1alpha1.ImagePulling, func(s *v1alpha1.NodeImageSet) { s.Status.LastHeartbeatTime = &metav1.Time{Time: beat} })
	}
	nodes.putSet(pulls(clock.Now()))
	next()
	clock.Step(v1alpha1.HeartbeatInterval)
	heard := clock.Now()
	nodes.putSet(pulls(heard))
	if changed := next(); len(changed) > 0 {
		t.Errorf("a heartbeat is told of: %v", changed)
	}
	silentAt := heard.Add(v1alpha1.HeartbeatInterval + time.Minute)
	if _, until := snapshot(t, nodes); !until.Equal(silentAt) {
		t.Errorf("until %v, want %v", until, silentAt)
	}
	clock.SetTime(silentAt.Add(-time.Second))
	if only(t, nodes).Down {
		t.Error("down before the timeout")
	}
	clock.Step(time.Second)
	if !only(t, nodes).Down {
		t.Error("not down after the timeout")
	}
	if _, until := snapshot(t, nodes); !until.IsZero() {
		t.Errorf("time changes nothing more, and it is looked at again at %v", until)
	}
	nodes.putSet(pulls(clock.Now()))
	if changed := next(); changed["node-1"] == nil || changed["node-1"].Down || only(t, nodes).Down {
		t.Errorf("it is back, and yet down or not told of: %v", changed)
	}
}

func TestWhoIsUncovered(t *testing.T) {
	unsupported := func(s *v1alpha1.NodeImageSet) {
		s.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: v1alpha1.ReasonUnsupportedRuntime}}
	}
	for _, tt := range []struct {
		reason string
		change func(*Nodes)
		want   bool
	}{
		{"no DaemonSet is known: agents may run everywhere", func(*Nodes) {}, false},
		{"the DaemonSet selects the node", func(n *Nodes) { n.putDaemon(daemon("web")) }, false},
		{"the DaemonSet does not select the node", func(n *Nodes) { n.putDaemon(daemon("gpu")) }, true},
		{"the DaemonSet is gone", func(n *Nodes) { n.putDaemon(daemon("gpu")); n.setDaemon(nil) }, false},
		{"the runtime is not supported", func(n *Nodes) { n.putSet(nodeSet(v1alpha1.ImagePending, unsupported)) }, true},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			nodes, _, _ := following(t)
			tt.change(nodes)
			if got := only(t, nodes).Uncovered; got != tt.want {
				t.Errorf("uncovered %t, want %t", got, tt.want)
			}
		})
	}
}

func TestASetOfAnEarlierNodeDoesNotCount(t *testing.T) {
	nodes, _, _ := following(t)
	nodes.putSet(nodeSet(v1alpha1.ImagePresent, nil))
	if len(only(t, nodes).Images) == 0 {
		t.Fatal("the node has no images")
	}
	nodes.putNode(readyNode(func(o *corev1.Node) { o.UID = "2" }))
	if len(only(t, nodes).Images) > 0 {
		t.Error("the set of a node that is gone counts for its successor")
	}
}

// A rollout that no node matches is not held, so that a controller which has just started must
// not take the nodes that it has yet to see for none.
func TestNothingIsSaidOfNodesBeforeAllAreKnown(t *testing.T) {
	nodes, _, _ := following(t)
	var known atomic.Bool
	nodes.synced = []toolscache.InformerSynced{func() bool { return true }, known.Load}
	ended, end := context.WithCancelCause(t.Context())
	end(errors.New("asked for too long"))
	if all, _, err := nodes.Snapshot(ended); err == nil || !strings.Contains(err.Error(), "asked for too long") {
		t.Errorf("%d nodes, error %v", len(all), err)
	}
	known.Store(true)
	if all, _ := snapshot(t, nodes); len(all) != 1 {
		t.Errorf("%d nodes, want 1", len(all))
	}
}
