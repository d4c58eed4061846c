// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/time/rate"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

var (
	soakDuration    = flag.Duration("soak.duration", 15*time.Second, "how long Deployments are edited at random")
	soakDeployments = flag.Int("soak.deployments", 20, "how many Deployments")
	soakSeed        = flag.Uint64("soak.seed", 0, "repeats the edits of a run; 0 makes one up")
)

const (
	soakNamespaces = 5
	// editsPerSecond is what the API server and the Deployment controller of a small
	// machine can follow.
	editsPerSecond = 60
)

var _ = Describe("Under random edits and restarts", Serial, Label("soak"), func() {
	It("nothing is held without a reason, released without its images, or taken from its owner", func(ctx SpecContext) {
		seed := *soakSeed
		if seed == 0 {
			seed = rand.Uint64()
		}
		fmt.Printf("soak: %d Deployments for %s, -soak.seed=%d\n", *soakDeployments, *soakDuration, seed)
		s := newSoak(ctx, seed)
		s.run(ctx)
		fmt.Printf("soak: %d writes went through, %d were rejected while Sluice was down, %d met a conflict; webhooks were ended %d times, controllers %d times\n",
			s.counted(wrote), s.counted(rejected), s.counted(conflicted), s.hooksEnded, s.controllersEnded)

		By("looking for a reason of each hold")
		for _, subject := range s.subjects {
			Eventually(func() string { return s.unreasonable(ctx, subject) }).Should(BeEmpty(), subject.String())
		}
		By("bringing all images, which ends each hold")
		for _, subject := range s.subjects {
			Eventually(func() error {
				tag, err := subject.tag(ctx)
				if err != nil {
					return client.IgnoreNotFound(err)
				}
				return subject.setPrefetch(ctx, ready, tag)
			}).Should(Succeed())
		}
		Eventually(func() ([]appsv1.Deployment, error) {
			var held appsv1.DeploymentList
			err := api.List(ctx, &held, client.HasLabels{v1alpha1.HoldLabel}, client.MatchingLabels{"soak": "true"})
			return held.Items, err
		}).Should(BeEmpty())

		By("reading the audit log")
		history := readHistory(control.AuditLog())
		Expect(history.wrongs).To(BeEmpty())
		fmt.Printf("soak: the audit log has %d writes of Deployments; %d of them were held, Sluice's controller ended %d holds, and owners %d; "+
			"%d images rolled out for the first time, %d of them because the nodes had them\n",
			history.writes, history.holds, history.releases, history.takeovers, history.first, history.evident)
		Expect(min(history.holds, history.releases, history.takeovers, history.first)).To(BeNumerically(">", 0), "nothing was shown")
		if *soakDuration >= time.Minute { // in a few seconds there may be none
			Expect(history.evident).To(BeNumerically(">", 0), "nothing was released because the nodes had it")
		}
	}, NodeTimeout(*soakDuration+15*time.Minute))
})

type fate int

const (
	wrote fate = iota
	rejected
	conflicted
)

// soak edits its subjects, each in an order of its own that the seed determines.
type soak struct {
	seed     uint64
	subjects []subject
	nodes    []*soakNode

	// hooks and controller are the parts of Sluice, apart from each other.
	hooks, controller            *replica
	hooksEnded, controllersEnded int

	mu    sync.Mutex
	fates map[fate]int
}

// subject is a Deployment and the ImagePrefetch of the same name.
type subject struct{ namespace, name string }

func (s subject) String() string { return s.namespace + "/" + s.name }

func (s subject) key() client.ObjectKey {
	return client.ObjectKey{Namespace: s.namespace, Name: s.name}
}

func newSoak(ctx context.Context, seed uint64) *soak {
	GinkgoHelper()
	s := &soak{seed: seed, fates: map[fate]int{}}
	outage() // of both parts in one
	s.hooks, s.controller = startParts(sluice.address, false), startParts("", true, killed)
	DeferCleanup(func() {
		s.hooks.stop()
		s.controller.stop()
	})
	for range leastSoakNodes {
		s.addNode(ctx)
	}
	var names []string
	for range soakNamespaces {
		names = append(names, newNamespace(ctx))
	}
	for i := range *soakDeployments {
		subject := subject{names[i%len(names)], fmt.Sprintf("app-%03d", i)}
		s.subjects = append(s.subjects, subject)
		Expect(api.Create(ctx, subject.manifest("a"))).To(Succeed())
	}
	return s
}

// manifest is what the subject's owner keeps in a file.
func (s subject) manifest(tag string) *appsv1.Deployment {
	labels := map[string]string{"app": s.name}
	return &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"},
		ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: s.name,
			Labels:      map[string]string{"soak": "true"},
			Annotations: map[string]string{v1alpha1.PrefetchAnnotation: s.name}},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{"pool": soakPool},
					Containers:   []corev1.Container{{Name: "main", Image: repository + ":" + tag}},
				},
			},
		},
	}
}

// run edits until the time is over, while Sluice comes and goes.
func (s *soak) run(ctx context.Context) {
	GinkgoHelper()
	ctx, cancel := context.WithTimeout(ctx, *soakDuration)
	defer cancel()
	limiter := rate.NewLimiter(editsPerSecond, 1)
	var workers sync.WaitGroup
	for i, subject := range s.subjects {
		random := rand.New(rand.NewPCG(s.seed, uint64(i)))
		workers.Go(func() {
			defer GinkgoRecover()
			for limiter.Wait(ctx) == nil {
				s.edit(context.WithoutCancel(ctx), subject, random) // what is cut short may be stored, and not be in the audit log
			}
		})
	}
	workers.Go(func() {
		defer GinkgoRecover()
		s.disturbNodes(ctx, rand.New(rand.NewPCG(s.seed, 1<<33))) // no subject's either
	})
	s.disturb(ctx)
	workers.Wait()
}

// disturb ends the webhooks, the controller or both at random moments and starts them
// again, until ctx ends.
func (s *soak) disturb(ctx context.Context) {
	GinkgoHelper()
	random := rand.New(rand.NewPCG(s.seed, 1<<32)) // no subject's
	pass := func(least, most time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(least + time.Duration(random.Int64N(int64(most-least)))):
			return true
		}
	}
	for pass(time.Second, 4*time.Second) {
		which := random.IntN(3)
		if which != 0 {
			s.hooks.stop()
			s.hooksEnded++
		}
		if which != 1 {
			s.controller.stop()
			s.controllersEnded++
		}
		pass(0, time.Second)
		if which != 0 {
			s.hooks = startParts(s.hooks.address, false)
		}
		if which != 1 {
			s.controller = startParts("", true, killed)
		}
	}
}

// killed has a controller end as if it were: what it is about is cut short.
func killed(o *ctrl.Options) { o.GracefulShutdownTimeout = new(time.Duration) }

// edit makes one random edit. The choice does not depend on how edits end, so that
// the seed repeats it.
func (s *soak) edit(ctx context.Context, subject subject, random *rand.Rand) {
	GinkgoHelper()
	name := editNames[random.IntN(len(editNames))]
	err := edits[name](ctx, subject, random)
	what := wrote
	switch {
	case err == nil:
	case apierrors.IsConflict(err), apierrors.IsNotFound(err), apierrors.IsAlreadyExists(err):
		what = conflicted
	case strings.Contains(err.Error(), "failed calling webhook"), strings.Contains(err.Error(), "the cache"): // down, or just coming up
		what = rejected
	default:
		Fail(fmt.Sprintf("%s: %s: %v", subject, name, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fates[what]++
}

func (s *soak) counted(what fate) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fates[what]
}

// unreasonable tells what is wrong about a Deployment being held; empty if nothing is.
func (s *soak) unreasonable(ctx context.Context, subject subject) string {
	GinkgoHelper()
	var d appsv1.Deployment
	Expect(client.IgnoreNotFound(api.Get(ctx, subject.key(), &d))).To(Succeed()) // its creation may have been rejected
	hash, held := d.Labels[v1alpha1.HoldLabel]
	if !held {
		return ""
	}
	wish := wishOf(&d)
	since, err := time.Parse(time.RFC3339, d.Annotations[v1alpha1.HeldAtAnnotation])
	var prefetch v1alpha1.ImagePrefetch
	found := api.Get(ctx, subject.key(), &prefetch)
	Expect(client.IgnoreNotFound(found)).NotTo(HaveOccurred())
	switch {
	case !d.Spec.Paused:
		return "it bears the label and is not paused"
	case err != nil:
		return "it does not say since when"
	case !wish.gated:
		return "it is not gated"
	case hash != imagesHash(&d):
		return "the label is not that of its images"
	case hash == d.Annotations[v1alpha1.ReleasedAnnotation]:
		return "its images were let through"
	case found == nil && isReady(&prefetch) && lists(&prefetch, &d):
		return "its images are there"
	case wish.over(since.Add(time.Second), time.Now()):
		return "its time is over"
	}
	return ""
}

func isReady(p *v1alpha1.ImagePrefetch) bool {
	for _, condition := range p.Status.Conditions {
		if condition.Type == v1alpha1.ConditionReady {
			return condition.Status == metav1.ConditionTrue && condition.ObservedGeneration == p.Generation
		}
	}
	return false
}

// lists reports whether a prefetch lists the one image of a subject's Deployment.
func lists(p *v1alpha1.ImagePrefetch, d *appsv1.Deployment) bool {
	for _, image := range p.Spec.Images {
		if string(image) == d.Spec.Template.Spec.Containers[0].Image {
			return true
		}
	}
	return false
}
