// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package agenttest says what a controller may rely on of a node agent (Contract): how it
// answers a NodeImageSet. The real agent keeps the contract, and so must whatever stands in
// for agents where the distribution is tested. Tests of the gate write the statuses that a case is
// about.
package agenttest

import (
	"context"
	"fmt"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
)

// Trouble is why pulls from the upstream registry fail.
type Trouble string

const (
	// NoTrouble: the registry answers.
	NoTrouble Trouble = ""
	// Unreachable: the registry cannot be reached, and another try may help.
	Unreachable Trouble = v1alpha1.ReasonRegistryUnavailable
	// Unknown: the registry does not know the image, and another try cannot help.
	Unknown Trouble = v1alpha1.ReasonImageNotFound
)

// Fleet is some nodes with their agents, a registry, and the mirror of the nodes.
type Fleet interface {
	// Client is an administrator's.
	Client() client.Client
	// Start starts the agent of a node, if it does not run yet.
	Start(node string)
	// Push has the tag of an image mean new content, and returns its digest. Whatever a
	// node has is on the mirror.
	Push(image string) (digest string)
	// SetTrouble makes all pulls from the upstream fail for this reason.
	SetTrouble(Trouble)
	// Lookups is how often the registry said what the tag of an image means.
	Lookups(image string) int
	// Pulls is how often content came from upstream.
	Pulls(digest string) int
}

const (
	repository  = "registry.sluice.test/contract/"
	specTimeout = 2 * time.Minute
	patience    = time.Minute
)

// Contract describes what an agent does. The fleet is made before each spec.
func Contract(newFleet func() Fleet) {
	var fleet Fleet
	var image string // of the spec
	specs := 0
	BeforeEach(func() {
		fleet = newFleet()
		specs++
		image = fmt.Sprintf("%simage-%d:v1", repository, specs)
	})
	// node makes a node without images.
	node := func(ctx context.Context, name string) *set {
		GinkgoHelper()
		s := &set{fleet: fleet, name: fmt.Sprintf("contract-%d-%s", specs, name)}
		fleet.Start(s.name)
		object := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: s.name}, Spec: v1alpha1.NodeImageSetSpec{NodeName: s.name}}
		Expect(fleet.Client().Create(ctx, object)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) {
			Expect(client.IgnoreNotFound(fleet.Client().Delete(ctx, object))).To(Succeed())
		})
		return s
	}
	seed := func(digest, request string) v1alpha1.NodeImage {
		return v1alpha1.NodeImage{Name: image, Digest: digest, Request: request, RegistryPolicy: v1alpha1.RegistryPolicyDefault}
	}
	peer := func(digest string) v1alpha1.NodeImage {
		return v1alpha1.NodeImage{Name: image, Digest: digest, RegistryPolicy: v1alpha1.RegistryPolicyMirror}
	}

	It("acknowledges a spec, also one that leaves nothing to do", func(ctx SpecContext) {
		s := node(ctx, "a")
		Eventually(s.acknowledged(ctx)).WithTimeout(patience).Should(BeTrue())
		digest := fleet.Push(image)
		s.ask(ctx, seed(digest, ""))
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		Eventually(s.acknowledged(ctx)).WithTimeout(patience).Should(BeTrue())
		s.ask(ctx)
		Eventually(s.acknowledged(ctx)).WithTimeout(patience).Should(BeTrue())
		Expect(s.read(ctx).Status.Images).To(BeEmpty(), "the status names only images of the spec")
	}, SpecTimeout(specTimeout))

	It("asks the registry once what a tag means, and says for which request", func(ctx SpecContext) {
		s, digest := node(ctx, "a"), fleet.Push(image)
		s.ask(ctx, seed("", "one"))
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		Expect(s.status(ctx, image)).To(HaveField("Request", "one"))
		Expect(fleet.Lookups(image)).To(Equal(1))
		Expect(fleet.Pulls(digest)).To(Equal(1))
	}, SpecTimeout(specTimeout))

	It("does not ask what a tag means when it is told the digest", func(ctx SpecContext) {
		s, digest := node(ctx, "a"), fleet.Push(image)
		fleet.Push(image) // the tag has moved
		s.ask(ctx, seed(digest, ""))
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		Expect(fleet.Lookups(image)).To(BeZero())
	}, SpecTimeout(specTimeout))

	It("gets what a peer is to have from the mirror, and asks nobody else", func(ctx SpecContext) {
		a, b, digest := node(ctx, "a"), node(ctx, "b"), fleet.Push(image)
		a.ask(ctx, seed(digest, ""))
		a.present(ctx, image, digest, v1alpha1.SourceUpstream)
		b.ask(ctx, peer(digest))
		b.present(ctx, image, digest, v1alpha1.SourceMirror)
		Expect(fleet.Pulls(digest)).To(Equal(1))
		Expect(fleet.Lookups(image)).To(BeZero())
	}, SpecTimeout(specTimeout))

	It("waits as a peer for what the mirror does not have yet", func(ctx SpecContext) {
		a, b, digest := node(ctx, "a"), node(ctx, "b"), fleet.Push(image)
		b.ask(ctx, peer(digest))
		Eventually(b.state(ctx, image)).WithTimeout(patience).Should(Equal(v1alpha1.ImagePulling))
		Expect(fleet.Pulls(digest)).To(BeZero())
		a.ask(ctx, seed(digest, ""))
		b.present(ctx, image, digest, v1alpha1.SourceMirror)
		Expect(fleet.Pulls(digest)).To(Equal(1))
	}, SpecTimeout(specTimeout))

	It("keeps what it has, and where that came from, when the upstream is taken from it", func(ctx SpecContext) {
		s, digest := node(ctx, "a"), fleet.Push(image)
		s.ask(ctx, seed("", "one"))
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		s.ask(ctx, peer(digest))
		Eventually(s.acknowledged(ctx)).WithTimeout(patience).Should(BeTrue())
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		Expect(fleet.Pulls(digest)).To(Equal(1))
	}, SpecTimeout(specTimeout))

	It("asks again for another request, and has what the tag means then", func(ctx SpecContext) {
		s, before := node(ctx, "a"), fleet.Push(image)
		s.ask(ctx, seed("", "one"))
		s.present(ctx, image, before, v1alpha1.SourceUpstream)
		after := fleet.Push(image)
		s.ask(ctx, seed(before, "two"))
		s.present(ctx, image, after, v1alpha1.SourceUpstream)
		Expect(s.status(ctx, image)).To(HaveField("Request", "two"))
		Expect(fleet.Lookups(image)).To(Equal(2))
	}, SpecTimeout(specTimeout))

	It("keeps what it has while the registry does not answer, and says why", func(ctx SpecContext) {
		s, digest := node(ctx, "a"), fleet.Push(image)
		s.ask(ctx, seed("", "one"))
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		fleet.Push(image)
		fleet.SetTrouble(Unreachable)
		s.ask(ctx, seed(digest, "two"))
		Eventually(s.reason(ctx, image)).WithTimeout(patience).Should(Equal(v1alpha1.ReasonRegistryUnavailable))
		Expect(s.status(ctx, image)).To(And(
			HaveField("State", v1alpha1.ImagePresent), HaveField("Digest", digest), HaveField("Request", "one")))
	}, SpecTimeout(specTimeout))

	It("tries again while that may help, and says what is wrong meanwhile", func(ctx SpecContext) {
		s, digest := node(ctx, "a"), fleet.Push(image)
		fleet.SetTrouble(Unreachable)
		s.ask(ctx, seed(digest, ""))
		Eventually(s.reason(ctx, image)).WithTimeout(patience).Should(Equal(v1alpha1.ReasonRegistryUnavailable))
		Expect(s.status(ctx, image)).To(And(
			HaveField("State", v1alpha1.ImagePending), HaveField("Attempts", BeNumerically(">", 0)), HaveField("Message", Not(BeEmpty()))))
		fleet.SetTrouble(NoTrouble)
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		Expect(s.status(ctx, image)).To(And(HaveField("Reason", BeEmpty()), HaveField("Message", BeEmpty())))
	}, SpecTimeout(specTimeout))

	It("gives up at once when the registry does not know the image", func(ctx SpecContext) {
		s := node(ctx, "a")
		fleet.SetTrouble(Unknown)
		s.ask(ctx, seed("", "one"))
		Eventually(s.state(ctx, image)).WithTimeout(patience).Should(Equal(v1alpha1.ImageFailed))
		Expect(s.status(ctx, image)).To(HaveField("Reason", v1alpha1.ReasonImageNotFound))
	}, SpecTimeout(specTimeout))

	It("reports the size of what it has", func(ctx SpecContext) {
		s, digest := node(ctx, "a"), fleet.Push(image)
		s.ask(ctx, seed(digest, ""))
		s.present(ctx, image, digest, v1alpha1.SourceUpstream)
		Expect(s.status(ctx, image)).To(HaveField("SizeBytes", BeNumerically(">", 0)))
	}, SpecTimeout(specTimeout))
}

// set is the NodeImageSet of a node.
type set struct {
	fleet Fleet
	name  string
}

// ask writes the spec.
func (s *set) ask(ctx context.Context, images ...v1alpha1.NodeImage) {
	GinkgoHelper()
	Eventually(func() error {
		object := s.read(ctx)
		object.Spec.ImageSet = images
		return s.fleet.Client().Update(ctx, object)
	}).WithTimeout(patience).Should(Succeed())
}

func (s *set) read(ctx context.Context) *v1alpha1.NodeImageSet {
	GinkgoHelper()
	object := &v1alpha1.NodeImageSet{}
	Expect(s.fleet.Client().Get(ctx, client.ObjectKey{Name: s.name}, object)).To(Succeed())
	return object
}

func (s *set) status(ctx context.Context, image string) v1alpha1.NodeImageStatus {
	GinkgoHelper()
	for _, status := range s.read(ctx).Status.Images {
		if status.Name == image {
			return status
		}
	}
	return v1alpha1.NodeImageStatus{}
}

func (s *set) state(ctx context.Context, image string) func() v1alpha1.ImageState {
	return func() v1alpha1.ImageState { return s.status(ctx, image).State }
}

func (s *set) reason(ctx context.Context, image string) func() string {
	return func() string { return s.status(ctx, image).Reason }
}

func (s *set) acknowledged(ctx context.Context) func() bool {
	return func() bool {
		object := s.read(ctx)
		return object.Status.ObservedGeneration == object.Generation
	}
}

// present expects the node to have the image in the end, from that source.
func (s *set) present(ctx context.Context, image, digest string, source v1alpha1.ImageSource) {
	GinkgoHelper()
	Eventually(func() v1alpha1.NodeImageStatus { return s.status(ctx, image) }).WithTimeout(patience).Should(And(
		HaveField("State", v1alpha1.ImagePresent), HaveField("Digest", digest), HaveField("Source", source)))
}
