// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

const (
	app     = "registry.sluice.test/demo/app:v1"
	sidecar = "registry.sluice.test/demo/sidecar:v1"
)

// agents stand in for the node agents of all nodes, their containerds, the mirror and
// the registry: they answer NodeImageSets as agents do, and keep the books.
type agents struct {
	mu   sync.Mutex
	poke chan struct{}
	sets map[string]*v1alpha1.NodeImageSet

	tags   map[string]string          // what a tag means; by default, version 1 of it
	stored map[string]map[string]bool // digests by node
	slow   map[string]bool            // nodes whose pulls do not end
	silent map[string]bool            // nodes whose agent is not there
	idle   map[string]string          // nodes that cannot work with their runtime, and the reason
	faults map[string]fault           // what pulls from upstream run into, by node; "" is every node

	pulls map[string][]string // nodes that pulled a digest from upstream, in order
	asked map[string]int      // how often the registry was asked what a tag means
	// answers are what it said.
	answers map[question]string
	seeds   map[string]int // how many nodes were let upstream for an image at most at a time
}

type question struct{ node, image, request string }

// fault is how a pull fails.
type fault struct {
	state           v1alpha1.ImageState
	reason, message string
}

// digestOf is the digest of some version of an image.
func digestOf(image string, version int) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(fmt.Appendf(nil, "%s %d", image, version)))
}

// runAgents runs them until the spec ends.
func runAgents() *agents {
	GinkgoHelper()
	a := &agents{
		poke: make(chan struct{}, 1), sets: map[string]*v1alpha1.NodeImageSet{},
		tags: map[string]string{}, stored: map[string]map[string]bool{},
		slow: map[string]bool{}, silent: map[string]bool{}, idle: map[string]string{}, faults: map[string]fault{},
		pulls: map[string][]string{}, asked: map[string]int{}, answers: map[question]string{}, seeds: map[string]int{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	events, err := api.Watch(ctx, &v1alpha1.NodeImageSetList{})
	Expect(err).NotTo(HaveOccurred())
	done := make(chan struct{})
	go func() {
		defer GinkgoRecover()
		defer close(done)
		a.run(ctx, events.ResultChan())
	}()
	DeferCleanup(func() {
		cancel()
		Eventually(done).Should(BeClosed())
	})
	return a
}

// change sets up what the agents do next.
func (a *agents) change(f func(*agents)) {
	a.mu.Lock()
	f(a)
	a.mu.Unlock()
	select {
	case a.poke <- struct{}{}:
	default:
	}
}

// upstream lists who pulled a digest from the registry.
func (a *agents) upstream(digest string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.pulls[digest])
}

// heads is how often the registry was asked what a tag means.
func (a *agents) heads(image string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked[image]
}

// mostSeeds is how many nodes at most were let upstream for an image at a time.
func (a *agents) mostSeeds(image string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seeds[image]
}

func (a *agents) run(ctx context.Context, events <-chan watch.Event) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.poke:
		case event, ok := <-events:
			if !ok {
				return
			}
			a.see(event)
		}
		a.answer(ctx)
	}
}

// see takes in what the watch says; it shows every write, in its order.
func (a *agents) see(event watch.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	set, ok := event.Object.(*v1alpha1.NodeImageSet)
	if !ok {
		return
	}
	a.sets[set.Name] = set
	if event.Type == watch.Deleted {
		delete(a.sets, set.Name)
	}
	seeds := map[string]int{}
	for _, set := range a.sets {
		for _, image := range set.Spec.ImageSet {
			if image.RegistryPolicy == v1alpha1.RegistryPolicyDefault {
				seeds[image.Name]++
				a.seeds[image.Name] = max(a.seeds[image.Name], seeds[image.Name])
			}
		}
	}
}

// answer writes the status of each node whose agent has news.
func (a *agents) answer(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, set := range a.sets {
		if a.silent[name] {
			continue
		}
		next := set.DeepCopy()
		next.Status = v1alpha1.NodeImageSetStatus{ObservedGeneration: set.Generation}
		if a.idle[name] != "" {
			next.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse,
				Reason: a.idle[name], LastTransitionTime: set.CreationTimestamp}}
		}
		for _, wanted := range set.Spec.ImageSet {
			if a.idle[name] != "" {
				next.Status.Images = append(next.Status.Images, v1alpha1.NodeImageStatus{Name: wanted.Name, State: v1alpha1.ImagePending})
				continue
			}
			next.Status.Images = append(next.Status.Images, a.pull(name, wanted, statusIn(set, wanted.Name)))
		}
		if equality.Semantic.DeepEqual(set.Status, next.Status) {
			continue
		}
		err := api.Status().Update(ctx, next)
		if err == nil {
			a.sets[name] = next
		}
		// Whatever went wrong, the object's next event tells more.
		if err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			Expect(err).NotTo(HaveOccurred())
		}
	}
}

func statusIn(set *v1alpha1.NodeImageSet, image string) v1alpha1.NodeImageStatus {
	for _, status := range set.Status.Images {
		if status.Name == image {
			return status
		}
	}
	return v1alpha1.NodeImageStatus{Name: image}
}

// pull takes an image one step further: Pulling first, and then what comes of it.
func (a *agents) pull(node string, wanted v1alpha1.NodeImage, was v1alpha1.NodeImageStatus) v1alpha1.NodeImageStatus {
	fromUpstream := wanted.RegistryPolicy == v1alpha1.RegistryPolicyDefault
	fault, faulty := a.faults[node]
	if !faulty {
		fault, faulty = a.faults[""]
	}
	// A fault meets what is asked for from now on, and takes nothing away.
	answered := was.State == v1alpha1.ImagePresent && a.stored[node][was.Digest] &&
		(wanted.Request == "" || wanted.Request == was.Request) && (wanted.Digest == "" || wanted.Digest == was.Digest)
	if fromUpstream && faulty && !answered {
		failed := v1alpha1.NodeImageStatus{Name: wanted.Name, State: fault.state, Reason: fault.reason, Message: fault.message, Attempts: 9}
		if a.stored[node][wanted.Digest] { // and asks for the tag again
			failed.State, failed.Digest, failed.Request = v1alpha1.ImagePresent, wanted.Digest, was.Request
		}
		return failed
	}
	now := v1alpha1.NodeImageStatus{Name: wanted.Name, Digest: wanted.Digest, Request: was.Request, SizeBytes: 1000}
	if _, digest, ok := strings.Cut(wanted.Name, "@"); ok {
		now.Digest = digest
	}
	if fromUpstream && wanted.Request != "" && wanted.Request != was.Request {
		now.Digest, now.Request = a.ask(node, wanted), wanted.Request
	}
	if now.Digest == "" || fromUpstream && wanted.Request != "" && wanted.Request == was.Request {
		now.Digest = was.Digest
	}
	begun := was.Digest == now.Digest && was.State == v1alpha1.ImagePulling
	switch {
	case was.Digest == now.Digest && was.State == v1alpha1.ImagePresent && a.stored[node][now.Digest]:
		now.State, now.Source = was.State, was.Source
	case a.stored[node][now.Digest]:
		now.State, now.Source = v1alpha1.ImagePresent, v1alpha1.SourceLocal
	case !begun || a.slow[node]:
		now.State = v1alpha1.ImagePulling
	case fromUpstream:
		a.pulls[now.Digest] = append(a.pulls[now.Digest], node)
		a.store(node, now.Digest)
		now.State, now.Source = v1alpha1.ImagePresent, v1alpha1.SourceUpstream
	case a.onMirror(now.Digest):
		a.store(node, now.Digest)
		now.State, now.Source = v1alpha1.ImagePresent, v1alpha1.SourceMirror
	default:
		now.State = v1alpha1.ImagePulling
	}
	return now
}

// ask asks the registry what a tag means: once, however often it takes to write that down.
func (a *agents) ask(node string, wanted v1alpha1.NodeImage) string {
	question := question{node, wanted.Name, wanted.Request}
	if _, asked := a.answers[question]; !asked {
		a.asked[wanted.Name]++
		a.answers[question] = cmp.Or(a.tags[wanted.Name], digestOf(wanted.Name, 1))
	}
	return a.answers[question]
}

func (a *agents) onMirror(digest string) bool {
	for _, digests := range a.stored {
		if digests[digest] {
			return true
		}
	}
	return false
}

// store puts a digest on a node. The next answers may depend on it.
func (a *agents) store(node, digest string) {
	if a.stored[node] == nil {
		a.stored[node] = map[string]bool{}
	}
	a.stored[node][digest] = true
	select {
	case a.poke <- struct{}{}:
	default:
	}
}
