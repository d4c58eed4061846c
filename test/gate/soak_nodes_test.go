// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	// soakPool is the pool of the nodes that the soak's Pods select.
	soakPool = "soak"
	// leastSoakNodes are there from the beginning, and mostSoakNodes at the end at most.
	leastSoakNodes, mostSoakNodes = 3, 8
	// imagesPerNode bounds what a node is asked for: older images are withdrawn.
	imagesPerNode = 20
	// decisionLag is how long after the nodes were in a state a write may be stored that was
	// decided on it.
	decisionLag = 3 * time.Second
)

// soakNode is a node of the soak, as its agent would tell of it.
type soakNode struct {
	set    v1alpha1.NodeImageSet
	images []v1alpha1.NodeImageStatus
	// dead is an agent that does not answer any more. With unseen it leaves a spec behind that it
	// has not seen.
	dead, unseen bool
}

// disturbNodes has nodes join, go and come back, their agents die and answer again, and images
// come and fail, at random moments until ctx ends.
func (s *soak) disturbNodes(ctx context.Context, random *rand.Rand) {
	GinkgoHelper()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(20+random.Int64N(200)) * time.Millisecond):
		}
		n := s.nodes[random.IntN(len(s.nodes))]
		// What has trouble is well again the next time, so that most nodes are well.
		trouble := random.IntN(3) == 0
		switch choice := random.IntN(20); {
		case choice < 12:
			s.bring(ctx, random)
		case choice < 14:
			n.dead, n.unseen = !n.dead && trouble, random.IntN(2) == 0
			n.report(ctx)
		case choice < 16:
			editNode(ctx, n.set.Name, func(node *corev1.Node) { node.Spec.Unschedulable = !node.Spec.Unschedulable && trouble })
		case choice < 18:
			setReady(ctx, n.set.Name, trouble)
		case len(s.nodes) < mostSoakNodes && ctx.Err() == nil:
			s.addNode(ctx)
		}
	}
}

func (s *soak) addNode(ctx context.Context) {
	GinkgoHelper()
	n := &soakNode{}
	n.set.Name = fmt.Sprintf("soak-%d", len(s.nodes))
	nodes.add(context.WithoutCancel(ctx), n.set.Name, soakPool)
	s.nodes = append(s.nodes, n)
}

// bring has an image that a Deployment is held for come to most nodes, fail on some, or be on its
// way. What its tag means is known before.
func (s *soak) bring(ctx context.Context, random *rand.Rand) {
	GinkgoHelper()
	var held appsv1.DeploymentList
	err := api.List(ctx, &held, client.HasLabels{v1alpha1.HoldLabel}, client.MatchingLabels{"soak": "true"})
	if err != nil || len(held.Items) == 0 {
		expectUnless(ctx, err)
		return
	}
	chosen := held.Items[random.IntN(len(held.Items))]
	_, tag, _ := strings.Cut(chosen.Spec.Template.Spec.Containers[0].Image, ":")
	err = subject{chosen.Namespace, chosen.Name}.setPrefetch(ctx, pulling, tag)
	if err != nil {
		return // others write it as well, Sluice is down, or ctx has ended
	}
	failing := random.IntN(3) == 0
	var reports sync.WaitGroup
	defer reports.Wait()
	for _, n := range s.nodes {
		state := v1alpha1.ImagePresent
		switch chance := random.IntN(10); {
		case chance == 0:
			state = v1alpha1.ImagePulling
		case chance < 3 && failing:
			state = v1alpha1.ImageFailed
		}
		name := repository + ":" + tag
		n.images = slices.DeleteFunc(n.images, func(image v1alpha1.NodeImageStatus) bool { return image.Name == name })
		n.images = append(n.images, v1alpha1.NodeImageStatus{Name: name, Digest: digestOf(tag), State: state})
		n.images = n.images[max(0, len(n.images)-imagesPerNode):]
		reports.Go(func() {
			defer GinkgoRecover()
			n.report(ctx)
		})
	}
}

// report has the node's set ask for its images, and its agent answer unless that is dead.
func (n *soakNode) report(ctx context.Context) {
	GinkgoHelper()
	set := &n.set
	set.Spec = v1alpha1.NodeImageSetSpec{NodeName: set.Name}
	for _, image := range n.images {
		set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: image.Name, Digest: image.Digest, RegistryPolicy: v1alpha1.RegistryPolicyDefault})
	}
	if n.dead && n.unseen { // it dies before it sees its spec, and otherwise in the middle of its work
		set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: repository + ":unseen", Digest: digestOf("unseen")})
	}
	var err error
	if set.UID == "" {
		err = asController.Create(ctx, set)
	} else {
		err = asController.Update(ctx, set)
	}
	if err == nil && !n.dead {
		set.Status = v1alpha1.NodeImageSetStatus{ObservedGeneration: set.Generation, Images: n.images}
		err = api.Status().Update(ctx, set)
	}
	expectUnless(ctx, err)
}

func editNode(ctx context.Context, name string, change func(*corev1.Node)) {
	GinkgoHelper()
	node, err := getNode(ctx, name)
	if err == nil {
		before := node.DeepCopy()
		change(node)
		err = api.Patch(ctx, node, client.MergeFrom(before))
	}
	expectUnless(ctx, err)
}

// setReady does what a kubelet does that has trouble, or that has it no more.
func setReady(ctx context.Context, name string, trouble bool) {
	GinkgoHelper()
	node, err := getNode(ctx, name)
	if err == nil {
		before := node.DeepCopy()
		for i := range node.Status.Conditions {
			if condition := &node.Status.Conditions[i]; condition.Type == corev1.NodeReady {
				broken := condition.Status == corev1.ConditionTrue && trouble
				condition.Status = corev1.ConditionTrue
				if broken {
					condition.Status = corev1.ConditionFalse
				}
			}
		}
		err = api.Status().Patch(ctx, node, client.MergeFrom(before))
	}
	expectUnless(ctx, err)
}

func getNode(ctx context.Context, name string) (*corev1.Node, error) {
	node := &corev1.Node{}
	return node, api.Get(ctx, client.ObjectKey{Name: name}, node)
}

// expectUnless expects no error unless ctx has ended.
func expectUnless(ctx context.Context, err error) {
	GinkgoHelper()
	if ctx.Err() == nil {
		Expect(err).NotTo(HaveOccurred())
	}
}

// nodeState is what the audit log says of one node.
type nodeState struct {
	node *corev1.Node
	set  *v1alpha1.NodeImageSet
	// lagsSince is when the agent was first seen to lag behind its spec; zero if it does not.
	lagsSince time.Time
	// heardAt is when the agent last wrote.
	heardAt time.Time
}

// nodeStates are all nodes of the soak from one moment on.
type nodeStates struct {
	at    time.Time
	nodes map[string]nodeState
}

// nodeWrite adds what a write of a Node or of a NodeImageSet has changed.
func (h *history) nodeWrite(e *entry) {
	GinkgoHelper()
	next := nodeStates{at: e.StageTimestamp, nodes: map[string]nodeState{}}
	if len(h.nodes) > 0 {
		next.nodes = maps.Clone(h.nodes[len(h.nodes)-1].nodes)
	}
	state := next.nodes[e.ObjectRef.Name]
	if e.ObjectRef.Resource == "nodes" {
		state.node = &corev1.Node{}
		Expect(json.Unmarshal(e.ResponseObject, state.node)).To(Succeed())
		if state.node.Labels["pool"] != soakPool {
			return
		}
	} else {
		before := state.set
		state.set = &v1alpha1.NodeImageSet{}
		Expect(json.Unmarshal(e.ResponseObject, state.set)).To(Succeed())
		if before == nil || e.ObjectRef.Subresource == "status" && before.ResourceVersion != state.set.ResourceVersion {
			state.heardAt = e.StageTimestamp
		}
		switch {
		case state.set.Status.ObservedGeneration == state.set.Generation:
			state.lagsSince = time.Time{}
		case state.lagsSince.IsZero():
			state.lagsSince = e.StageTimestamp
		}
	}
	next.nodes[e.ObjectRef.Name] = state
	h.nodes = append(h.nodes, next)
}

// nodesHave reports whether the nodes were in a state, shortly before a write, on which the image
// of a Deployment may roll out.
func (h *history) nodesHave(e *entry, was, now *appsv1.Deployment) bool {
	heldAt := e.StageTimestamp
	if isHeld(was) && was.Labels[v1alpha1.HoldLabel] == imagesHash(now) {
		if at, err := time.Parse(time.RFC3339, was.Annotations[v1alpha1.HeldAtAnnotation]); err == nil {
			heldAt = at
		}
	}
	for _, state := range slices.Backward(h.nodes) {
		if state.evident(now.Spec.Template.Spec.Containers[0].Image, heldAt, e.StageTimestamp, wishOf(now).lets) {
			return true
		}
		if state.at.Before(e.StageTimestamp.Add(-decisionLag)) {
			return false
		}
	}
	return false
}

// evident reports whether one node has the image, and so has every other, but those that take no
// Pods, came after heldAt, or failed where that is allowed.
func (s nodeStates) evident(image string, heldAt, now time.Time, lets bool) bool {
	complete, failed := 0, 0
	for _, n := range s.nodes {
		if n.node == nil || !isReadyNode(n.node) || n.node.Spec.Unschedulable || len(n.node.Spec.Taints) > 0 {
			continue
		}
		switch state := n.stateOf(image); {
		case state == v1alpha1.ImagePresent:
			complete++
		case n.node.CreationTimestamp.After(heldAt):
		case state == v1alpha1.ImageFailed, n.isSilent(now):
			failed++
		default:
			return false
		}
	}
	return complete > 0 && (failed == 0 || failed == 1 && lets)
}

// isSilent reports whether the agent has been behind its spec for too long, or has written nothing
// for too long although it has images to bring.
func (n nodeState) isSilent(now time.Time) bool {
	if n.set == nil {
		return false
	}
	works := slices.ContainsFunc(n.set.Status.Images, func(image v1alpha1.NodeImageStatus) bool {
		return image.State == v1alpha1.ImagePending || image.State == v1alpha1.ImagePulling
	})
	return !n.lagsSince.IsZero() && !now.Before(n.lagsSince.Add(agentTimeout)) ||
		works && !now.Before(n.heardAt.Add(30*time.Second+agentTimeout))
}

func isReadyNode(node *corev1.Node) bool {
	return slices.ContainsFunc(node.Status.Conditions, func(condition corev1.NodeCondition) bool {
		return condition.Type == corev1.NodeReady && condition.Status == corev1.ConditionTrue
	})
}

// stateOf is what the agent says of an image that its node is asked for; empty if nothing.
func (n nodeState) stateOf(image string) v1alpha1.ImageState {
	if n.set == nil || !slices.ContainsFunc(n.set.Spec.ImageSet, func(asked v1alpha1.NodeImage) bool { return asked.Name == image }) {
		return ""
	}
	for _, status := range n.set.Status.Images {
		if status.Name == image {
			return status.State
		}
	}
	return ""
}
