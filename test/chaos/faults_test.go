// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"net/http"
	"time"

	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// fault is what breaks, and which deviations from the usual counts it explains.
type fault struct {
	name string
	// strike breaks something. repair, if not nil, ends it after a while.
	strike func(ctx context.Context, r *round) (repair func(ctx context.Context) error, err error)
	// It lasts from least to longest, by chance.
	least, longest time.Duration
	// cuts: what was on its way from upstream while it lasted may be fetched again, by any node. The
	// loss of a node needs no such excuse: what the node itself was sent is excused by its address.
	cuts bool
	// replaces: the seed may be replaced by another node.
	replaces bool
	// fallsBack: nodes that no mirror serves are sent to the upstream, in turn.
	fallsBack bool
}

// A fault that lasts briefly is over before clients of the mirror and of the registry give up. One
// that lasts lengthily or more makes them give up, and a silent seed is replaced.
const (
	briefly      = 4 * time.Second
	lengthily    = seedTimeout + 5*time.Second
	moreThanThat = lengthily + 15*time.Second
)

var faults = []fault{
	{name: "agent killed", strike: killAgent, cuts: true},
	{name: "leading controller killed", strike: killLeader},
	{name: "both controllers killed", strike: killControllers},
	{name: "containerd restarted", strike: restartContainerd, cuts: true},
	{name: "one mirror stopped", strike: stopMirror, longest: briefly},
	{name: "all mirrors stopped", strike: stopMirrors, longest: briefly},
	{name: "all mirrors stopped for long", strike: stopMirrors, least: lengthily, longest: moreThanThat, replaces: true, fallsBack: true},
	{name: "registry refuses connections", strike: cutOff(upstream.Refuse), longest: briefly, cuts: true, replaces: true},
	{name: "registry hangs", strike: cutOff(upstream.Hang), longest: briefly},
	{name: "registry hangs for long", strike: cutOff(upstream.Hang), least: lengthily, longest: moreThanThat, cuts: true, replaces: true},
	{name: "registry answers 429", strike: answer(http.StatusTooManyRequests), longest: briefly, cuts: true, replaces: true},
	{name: "registry answers 500", strike: answer(http.StatusInternalServerError), longest: briefly, cuts: true, replaces: true},
	{name: "registry answers 401", strike: answer(http.StatusUnauthorized), longest: briefly, cuts: true, replaces: true},
	{name: "registry answers 404", strike: answer(http.StatusNotFound), longest: briefly, cuts: true, replaces: true},
	{name: "registry resets in the middle of layers", strike: reset, longest: briefly, cuts: true, replaces: true},
	{name: "node gone for good", strike: loseNode, replaces: true},
	{name: "node dead, and its Node object stays", strike: killNode, least: lengthily, longest: moreThanThat, replaces: true},
	{name: "node off and on", strike: powerCycle, longest: briefly, cuts: true},
	{name: "API server restarted", strike: restartAPIServer, longest: briefly},
}

type repair = func(ctx context.Context) error

func killAgent(_ context.Context, r *round) (repair, error) {
	r.Agent(r.victim()).Kill()
	return nil, nil
}

// takeover is how long it may take until another leads, from when the leader was killed:
// the lease (8 s), and twice the longest pause between two looks at it, after the last that
// found it renewed and before the first that finds it expired.
const takeover = 15 * time.Second

// killLeader keeps the leader down until the standby has taken over.
func killLeader(_ context.Context, r *round) (repair, error) {
	victim := r.leader()
	r.keepDown(victim, true)
	r.Controllers()[victim].Kill()
	return func(context.Context) error {
		r.Eventually(r.leader, takeover, 50*time.Millisecond).ShouldNot(Equal(victim), "the standby takes over")
		r.keepDown(victim, false)
		return nil
	}, nil
}

func killControllers(_ context.Context, r *round) (repair, error) {
	for _, process := range r.Controllers() {
		process.Kill()
	}
	return nil, nil
}

func restartContainerd(ctx context.Context, r *round) (repair, error) {
	node := r.victim()
	node.Containerd.Kill()
	return nil, node.Containerd.Start(ctx)
}

func stopMirror(_ context.Context, r *round) (repair, error) {
	node := r.victim()
	node.Mirror.Kill()
	return node.Mirror.Start, nil
}

func stopMirrors(_ context.Context, r *round) (repair, error) {
	all := r.Cluster.Nodes()
	for _, node := range all {
		node.Mirror.Kill()
	}
	return func(ctx context.Context) error {
		var errs []error
		for _, node := range all {
			errs = append(errs, node.Mirror.Start(ctx))
		}
		return errors.Join(errs...)
	}, nil
}

func cutOff(outage upstream.Outage) func(context.Context, *round) (repair, error) {
	return func(_ context.Context, r *round) (repair, error) {
		return func(context.Context) error { return r.Upstream.Restore() }, r.Upstream.CutOff(outage)
	}
}

func answer(status int) func(context.Context, *round) (repair, error) {
	return inject(upstream.Any, upstream.Answer(status))
}

func reset(ctx context.Context, r *round) (repair, error) {
	return inject(upstream.Blobs, upstream.ResetAfter(images.MiB/2))(ctx, r)
}

func inject(match upstream.Match, effect upstream.Effect) func(context.Context, *round) (repair, error) {
	return func(_ context.Context, r *round) (repair, error) {
		remove := r.Upstream.Inject(match, 0, effect)
		return func(context.Context) error { remove(); return nil }, nil
	}
}

// loseNode takes a node away with its disk; its Node object goes as a cloud's
// controller deletes it. Another node comes after the round.
func loseNode(ctx context.Context, r *round) (repair, error) {
	node := r.victim()
	r.power(node, false)
	r.lost = node
	if err := r.Cluster.RemoveNode(ctx, node); err != nil {
		return nil, err
	}
	r.seeds.Gone(node.Name)
	return nil, r.Client.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}})
}

// killNode takes a node away, and Kubernetes does not know that for a while. The node must not
// delay others.
func killNode(ctx context.Context, r *round) (repair, error) {
	node := r.victim()
	r.power(node, false)
	r.lost = node
	if err := r.Cluster.RemoveNode(ctx, node); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		r.Eventually(func(g Gomega) { r.everyNodeHasAll(ctx, g) }, bound, time.Second).Should(Succeed(), r.describe)
		r.seeds.Gone(node.Name)
		return r.Client.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name}})
	}, nil
}

// comeBack adds a node in place of one that was lost.
func (r *round) comeBack(ctx context.Context) error {
	node, err := r.AddNode(ctx, cluster.NodeOptions{})
	if err != nil {
		return err
	}
	r.keepAgent(node)
	return nil
}

func powerCycle(_ context.Context, r *round) (repair, error) {
	node := r.victim()
	r.power(node, false)
	node.PowerOff()
	return func(ctx context.Context) error {
		defer r.power(node, true)
		return node.PowerOn(ctx)
	}, nil
}

func restartAPIServer(_ context.Context, r *round) (repair, error) {
	r.Cluster.ControlPlane.APIServer.Kill()
	return r.Cluster.ControlPlane.APIServer.Start, nil
}
