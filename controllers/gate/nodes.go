// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/heartbeat"
	"github.com/sluice-dev/sluice/internal/hold"
	"github.com/sluice-dev/sluice/internal/requeue"
	"github.com/sluice-dev/sluice/internal/scheduling"
)

// +kubebuilder:rbac:groups="",resources=nodes,verbs=list;watch
// +kubebuilder:rbac:groups=sluice.dev,resources=nodeimagesets,verbs=list;watch
// +kubebuilder:rbac:groups=apps,resources=daemonsets,namespace=sluice-system,verbs=list;watch

// flushInterval is how long changes of nodes are collected before the holds that wait for
// them are looked at again: thousands of agents may report in one second.
const flushInterval = 100 * time.Millisecond

// Nodes follows the nodes of the cluster, for the webhooks and for the gate controller. It
// looks again only at what has changed, and makes a snapshot only after something has.
type Nodes struct {
	// Clock is compared with AgentTimeout.
	Clock clock.WithDelayedExecution
	// AgentTimeout is how long an agent may owe an answer before nothing is expected of its node
	// any more (plan.Limits).
	AgentTimeout time.Duration
	// Agents is the DaemonSet whose placement says where agents are meant to run; empty
	// where agents run everywhere.
	Agents client.ObjectKey

	// synced reports whether what was there when Watch was called is known.
	synced []toolscache.InformerSynced

	mu      sync.Mutex
	known   map[string]*nodeRecord
	last    []hold.Node             // the last snapshot; nil if something changed that rollouts may wait for
	until   time.Time               // when time alone may change it; zero is never
	daemon  *scheduling.Constraints // nil where agents run everywhere
	changed map[string]bool         // since the last flush; empty: nothing is to be flushed
	flush   func(changed map[string]*hold.Node)
}

// nodeRecord is what is known of one node, or of a NodeImageSet whose node is not known.
type nodeRecord struct {
	node *corev1.Node
	set  *v1alpha1.NodeImageSet
	// view is what both come to, without what time alone changes.
	view hold.Node
	// heardAt is when the agent was last heard, and silentAt when it becomes silent; zero if it
	// owes nothing.
	heardAt, silentAt time.Time
}

// Watch begins to follow the nodes. It returns before the cache is filled.
func (n *Nodes) Watch(ctx context.Context, from cache.Cache) error {
	n.known, n.changed = map[string]*nodeRecord{}, map[string]bool{}
	watches := map[client.Object]toolscache.ResourceEventHandlerFuncs{
		&corev1.Node{}:           follow(n.putNode, n.dropNode),
		&v1alpha1.NodeImageSet{}: follow(n.putSet, n.dropSet),
	}
	if n.Agents.Name != "" {
		watches[&appsv1.DaemonSet{}] = follow(n.putDaemon, func(*appsv1.DaemonSet) { n.setDaemon(nil) })
	}
	for kind, handler := range watches {
		informer, err := from.GetInformer(ctx, kind)
		if err != nil {
			return fmt.Errorf("watch %T: %w", kind, err)
		}
		registration, err := informer.AddEventHandler(handler)
		if err != nil {
			return fmt.Errorf("follow %T: %w", kind, err)
		}
		n.synced = append(n.synced, registration.HasSynced)
	}
	return nil
}

// follow hands over each object as it is now, and each that is gone.
func follow[T client.Object](put, drop func(T)) toolscache.ResourceEventHandlerFuncs {
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { put(object.(T)) },
		UpdateFunc: func(_, object any) { put(object.(T)) },
		DeleteFunc: func(object any) {
			if unknown, ok := object.(toolscache.DeletedFinalStateUnknown); ok {
				object = unknown.Obj
			}
			drop(object.(T))
		},
	}
}

// OnChange has changes told, some at a time: the nodes of which something changed that rollouts may
// wait for, by name, as they are now; nil if they are gone.
func (n *Nodes) OnChange(flush func(changed map[string]*hold.Node)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flush = flush
}

// Snapshot returns all nodes as they are now, in any order, and until when time alone does not change
// that: then the next agent may have been silent for too long. Zero is for ever. Others have the same
// slice, so it is not to be changed. At the start it waits until all nodes are known, since a rollout
// that no node matches is not held. It fails if ctx ends before that.
func (n *Nodes) Snapshot(ctx context.Context) (nodes []hold.Node, until time.Time, err error) {
	if !toolscache.WaitForCacheSync(ctx.Done(), n.synced...) {
		return nil, time.Time{}, fmt.Errorf("wait until the cache has all nodes: %w", context.Cause(ctx))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := n.Clock.Now()
	if n.last == nil || !n.until.IsZero() && !now.Before(n.until) {
		n.last, n.until = n.snapshot(now)
	}
	return n.last, n.until, nil
}

// snapshot reads all records.
func (n *Nodes) snapshot(now time.Time) (nodes []hold.Node, until time.Time) {
	nodes = make([]hold.Node, 0, len(n.known))
	for _, record := range n.known {
		if record.node == nil {
			continue
		}
		nodes = append(nodes, record.viewAt(now))
		if !record.silent(now) {
			until = requeue.Earliest(until, record.silentAt)
		}
	}
	return nodes, until
}

func (n *Nodes) putNode(node *corev1.Node) {
	n.update(node.Name, func(record *nodeRecord) { record.node = node })
}

func (n *Nodes) dropNode(node *corev1.Node) {
	n.update(node.Name, func(record *nodeRecord) { record.node = nil })
}

func (n *Nodes) putSet(set *v1alpha1.NodeImageSet) {
	n.update(set.Name, func(record *nodeRecord) {
		record.heardAt = heartbeat.HeardAt(record.set, set, record.heardAt, n.Clock.Now())
		record.set = set
	})
}

func (n *Nodes) dropSet(set *v1alpha1.NodeImageSet) {
	n.update(set.Name, func(record *nodeRecord) { record.set = nil })
}

func (n *Nodes) putDaemon(daemon *appsv1.DaemonSet) {
	if client.ObjectKeyFromObject(daemon) == n.Agents {
		constraints := scheduling.OfDaemon(&daemon.Spec.Template.Spec)
		n.setDaemon(&constraints)
	}
}

// setDaemon looks again at every node.
func (n *Nodes) setDaemon(constraints *scheduling.Constraints) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.daemon = constraints
	for name := range n.known {
		n.look(name)
	}
}

// update changes what is known of a node, and tells of it if that may concern a rollout.
func (n *Nodes) update(name string, change func(*nodeRecord)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	record, found := n.known[name]
	if !found {
		record = &nodeRecord{}
		n.known[name] = record
	}
	change(record)
	n.look(name)
	if record.node == nil && record.set == nil {
		delete(n.known, name)
	}
}

// look makes the view of a node again.
func (n *Nodes) look(name string) {
	record, now := n.known[name], n.Clock.Now()
	before, silentBefore, wasSilent := record.view, record.silentAt, record.silent(now)
	set := record.set
	if record.node == nil || set != nil && !belongsTo(set, record.node) {
		set = nil
	}
	record.view, record.silentAt = hold.Node{}, time.Time{}
	if record.node != nil {
		record.view = n.view(record.node, set)
	}
	if set != nil {
		record.silentAt = heartbeat.SilentAt(record.heardAt, heartbeat.Acknowledged(set), heartbeat.Unfinished(set), n.AgentTimeout)
	}
	sooner := !requeue.Earliest(silentBefore, record.silentAt).Equal(silentBefore) // than it would be looked at again
	if sooner || wasSilent != record.silent(now) || concerns(&before, &record.view) {
		n.tell(name)
	}
}

// silent reports whether the agent owes an answer for too long.
func (r *nodeRecord) silent(now time.Time) bool {
	return !r.silentAt.IsZero() && !now.Before(r.silentAt)
}

// viewAt is the view at a time.
func (r *nodeRecord) viewAt(now time.Time) hold.Node {
	view := r.view
	view.Down = view.Down || r.silent(now)
	return view
}

// view is what a node and its NodeImageSet come to. The set is nil if the node has none.
func (n *Nodes) view(node *corev1.Node, set *v1alpha1.NodeImageSet) hold.Node {
	view := hold.Node{
		Node: scheduling.Node{
			Name: node.Name, Labels: node.Labels, Taints: node.Spec.Taints,
			OS: node.Status.NodeInfo.OperatingSystem, Ready: isTrue(node, corev1.NodeReady), Unschedulable: node.Spec.Unschedulable,
		},
		CreatedAt: node.CreationTimestamp.Time,
	}
	view.Uncovered = n.daemon != nil && n.daemon.Fit(&view.Node) == scheduling.FitNever
	if set == nil {
		return view
	}
	view.Images = hold.ImagesOn(set)
	if ready := meta.FindStatusCondition(set.Status.Conditions, v1alpha1.ConditionReady); ready != nil {
		view.Uncovered = view.Uncovered || ready.Reason == v1alpha1.ReasonUnsupportedRuntime
		view.Down = ready.Reason == v1alpha1.ReasonRuntimeUnavailable
	}
	return view
}

// belongsTo reports whether a set was made for this node, and not for an earlier one of the
// same name, which the garbage collector has yet to take away.
func belongsTo(set *v1alpha1.NodeImageSet, node *corev1.Node) bool {
	return len(set.OwnerReferences) == 0 || slices.ContainsFunc(set.OwnerReferences, func(owner metav1.OwnerReference) bool {
		return owner.UID == node.UID
	})
}

func isTrue(node *corev1.Node, kind corev1.NodeConditionType) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(condition corev1.NodeCondition) bool {
		return condition.Type == kind && condition.Status == corev1.ConditionTrue
	})
}

// concerns reports whether a rollout may go by what changed. Heartbeats do not count, nor
// do bytes that came.
func concerns(before, after *hold.Node) bool {
	return before.Name != after.Name || before.OS != after.OS || before.Ready != after.Ready || before.Unschedulable != after.Unschedulable ||
		before.Uncovered != after.Uncovered || before.Down != after.Down || !before.CreatedAt.Equal(after.CreatedAt) ||
		!maps.Equal(before.Labels, after.Labels) || !equality.Semantic.DeepEqual(before.Taints, after.Taints) ||
		!maps.EqualFunc(before.Images, after.Images, slices.Equal)
}

// tell drops the snapshot, collects the change, and has it told soon.
func (n *Nodes) tell(name string) {
	n.last = nil
	underWay := len(n.changed) > 0
	n.changed[name] = true
	if underWay {
		return
	}
	due := n.Clock.Now().Add(flushInterval)
	n.Clock.AfterFunc(flushInterval, func() {
		n.mu.Lock()
		changed, flush := make(map[string]*hold.Node, len(n.changed)), n.flush
		for name := range n.changed {
			changed[name] = nil
			if record := n.known[name]; record != nil && record.node != nil {
				view := record.viewAt(due)
				changed[name] = &view
			}
		}
		n.changed = map[string]bool{}
		n.mu.Unlock()
		if flush != nil {
			flush(changed)
		}
	})
}
