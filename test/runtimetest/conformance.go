// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package runtimetest has the specs that every nodeagent.Runtime must pass (Conformance), and a
// Runtime in memory that passes them (Fake).
package runtimetest

import (
	"context"
	"fmt"
	"net/url"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
	"github.com/sluice-dev/sluice/test/images"
)

// ContentSource is a registry or a mirror, as the specs control it.
type ContentSource interface {
	// Push serves an artifact under "repository:tag".
	Push(ref string, artifact images.Artifact) error
	// Withhold makes a digest be missing until serve is called.
	Withhold(d digest.Digest) (serve func())
	// SetDown cuts it off from the node, or ends that.
	SetDown(down bool)
	// Protect makes a repository ask for User and Password. It answers OverLimit, who has the same
	// password, that there were too many requests.
	Protect(repository string)
	// Fetched is how often the content of a digest was sent.
	Fetched(d digest.Digest) int
	// Resolved is how often the digest of a tag was asked for.
	Resolved() int
}

// TestNode is a node with the runtime under test, for one spec.
type TestNode struct {
	Runtime nodeagent.Runtime
	// Registry is the host in the names of images.
	Registry string
	// Upstream is the registry. Mirror is the mirror that the node is configured with.
	Upstream, Mirror ContentSource
	// Record looks an image name up.
	Record func(name string) (Record, bool)
	// Delete deletes an image name.
	Delete func(name string)
	// Point makes or moves a name as another client would.
	Point func(name string, d digest.Digest, pinned bool)
	// Hang makes the runtime answer nothing until resume is called. resume may be called twice.
	Hang func() (resume func())
	// Spoil makes something wrong in how the node is to reach the Registry. It costs no pull.
	Spoil func()
	// Unlabel takes the labels of their sources from a blob, as if it had been imported.
	Unlabel func(d digest.Digest)
	// Created is what a mirror on the node is told from now on.
	Created func(ctx context.Context) <-chan Creation
}

// Creation is the event that a blob was created, with the labels that the blob had when a mirror
// was told of it.
type Creation struct {
	Digest digest.Digest
	Labels map[string]string
}

const (
	specTimeout = time.Minute
	layerSize   = 200 * images.KiB
)

// ignore is for what a spec does not look at.
func ignore([]nodeagent.Finding) {}

// serial numbers the specs, so that each has images of its own.
var serial struct {
	sync.Mutex
	n int
}

// Conformance adds the specs that every Runtime passes. newNode is called in each, and may use
// DeferCleanup.
func Conformance(newNode func(ctx context.Context) *TestNode) {
	var (
		node       *TestNode
		repository string
		tag        imageref.Reference
	)
	BeforeEach(func(ctx context.Context) {
		node = newNode(ctx)
		serial.Lock()
		defer serial.Unlock()
		serial.n++
		repository = fmt.Sprintf("team/app-%d", serial.n)
		tag = parse(node.Registry + "/" + repository + ":v1")
	}, NodeTimeout(specTimeout))

	makeImage := func(version string) (images.Artifact, digest.Digest) {
		image, err := images.Image(images.Options{Layers: images.Layers(repository+version, 3, layerSize), Seed: version})
		Expect(err).NotTo(HaveOccurred())
		d, err := image.Digest()
		Expect(err).NotTo(HaveOccurred())
		return image, digest.Digest(d.String())
	}
	seed := func(d digest.Digest) nodeagent.PullRequest {
		return nodeagent.PullRequest{Ref: tag, Digest: d, Policy: v1alpha1.RegistryPolicyDefault, Pinned: true}
	}
	local := nodeagent.PullRequest{Policy: v1alpha1.RegistryPolicyLocal}
	peer := func(d digest.Digest) nodeagent.PullRequest {
		return nodeagent.PullRequest{Ref: tag, Digest: d, Policy: v1alpha1.RegistryPolicyMirror, Pinned: true}
	}
	pull := func(ctx context.Context, req nodeagent.PullRequest) (nodeagent.Result, error) {
		return node.Runtime.Pull(ctx, req, func(nodeagent.Progress) {})
	}
	present := func(ctx context.Context, d digest.Digest) bool {
		p, err := node.Runtime.Check(ctx, tag, d)
		Expect(err).NotTo(HaveOccurred())
		return p.Present
	}
	everyBlob := func(place ContentSource, artifact images.Artifact, times int) {
		GinkgoHelper()
		Expect(images.Walk(artifact, func(b images.Blob) error {
			Expect(place.Fetched(digest.Digest(b.Digest.String()))).To(Equal(times), "fetches of %s %s", b.MediaType, b.Digest)
			return nil
		})).To(Succeed())
	}

	Context("under the policy Local", func() {
		It("takes what the node has under the name, and asks nobody", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			node.Delete(tag.WithDigest(d).String()) // an import makes no such name
			other, _ := makeImage("v2")
			Expect(node.Upstream.Push(repository+":v1", other)).To(Succeed())
			Expect(node.Mirror.Push(repository+":v1", other)).To(Succeed())

			local.Ref, local.Pinned = tag, true
			Expect(pull(ctx, local)).To(And(HaveField("Digest", d), HaveField("Source", v1alpha1.SourceLocal), HaveField("PulledBytes", BeZero())))
			Expect(present(ctx, d)).To(BeTrue(), "with all names")
			Expect(node.Upstream.Resolved()).To(BeZero())
		}, SpecTimeout(specTimeout))

		It("says that the node has no such image", func(ctx context.Context) {
			image, _ := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			local.Ref = tag
			_, err := pull(ctx, local)
			Expect(err).To(MatchError(nodeagent.ErrImageNotOnNode))
			everyBlob(node.Upstream, image, 0)
			everyBlob(node.Mirror, image, 0)
		}, SpecTimeout(specTimeout))
	})

	Context("as a seed", func() {
		It("resolves the tag once and fetches each blob once", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			Expect(present(ctx, d)).To(BeFalse())

			var resolved digest.Digest
			result, err := node.Runtime.Pull(ctx, seed(""), func(p nodeagent.Progress) { resolved = p.Digest })
			Expect(err).NotTo(HaveOccurred())
			Expect(resolved).To(Equal(d), "reported while pulling")
			Expect(result.Digest).To(Equal(d))
			Expect(result.Source).To(Equal(v1alpha1.SourceUpstream))
			Expect(result.SizeBytes).To(BeNumerically(">", 3*layerSize))
			Expect(result.PulledBytes).To(BeNumerically(">=", result.SizeBytes))
			everyBlob(node.Upstream, image, 1)
			Expect(node.Upstream.Resolved()).To(Equal(1))

			presence, err := node.Runtime.Check(ctx, tag, d)
			Expect(err).NotTo(HaveOccurred())
			Expect(presence).To(Equal(nodeagent.Presence{Present: true, SizeBytes: result.SizeBytes}))
			for _, name := range tag.Names(d) {
				record, ok := node.Record(name)
				Expect(ok).To(BeTrue(), name)
				Expect(record).To(Equal(Record{Digest: d, Pinned: true}), name)
			}
		}, SpecTimeout(specTimeout))

		It("asks once and fetches nothing when the tag still means the same", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			Expect(pull(ctx, seed(""))).To(HaveField("Digest", d))

			result, err := pull(ctx, seed(""))
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Digest).To(Equal(d))
			Expect(result.Source).To(Equal(v1alpha1.SourceLocal))
			Expect(result.PulledBytes).To(BeZero())
			everyBlob(node.Upstream, image, 1)
			Expect(node.Upstream.Resolved()).To(Equal(2))
		}, SpecTimeout(specTimeout))

		It("moves the name when the tag means something else now", func(ctx context.Context) {
			first, old := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", first)).To(Succeed())
			Expect(pull(ctx, seed(""))).To(HaveField("Digest", old))
			second, d := makeImage("v2")
			Expect(node.Upstream.Push(repository+":v1", second)).To(Succeed())

			Expect(pull(ctx, seed(""))).To(HaveField("Digest", d))
			Expect(present(ctx, d)).To(BeTrue())
			Expect(present(ctx, old)).To(BeFalse())
		}, SpecTimeout(specTimeout))

		It("gives the tag's name to the digest that is asked for, whatever the tag means", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			moved, _ := makeImage("v2")
			Expect(node.Upstream.Push(repository+":v1", moved)).To(Succeed())

			Expect(pull(ctx, seed(d))).To(HaveField("Digest", d))
			Expect(present(ctx, d)).To(BeTrue())
			everyBlob(node.Upstream, image, 1)
		}, SpecTimeout(specTimeout))

		It("fetches the node's platform only", func(ctx context.Context) {
			index, d, foreign := multiPlatform(repository)
			Expect(node.Upstream.Push(repository+":v1", index)).To(Succeed())
			Expect(pull(ctx, seed(""))).To(HaveField("Digest", d))
			Expect(present(ctx, d)).To(BeTrue())
			everyBlob(node.Upstream, foreign, 0)
		}, SpecTimeout(specTimeout))

		It("uses the first credentials that the registry accepts", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			node.Upstream.Protect(repository)
			req := seed("")
			req.Credentials = []nodeagent.Credential{{Username: "old", Password: "forgotten"}, {Username: User, Password: Password}}
			Expect(pull(ctx, req)).To(HaveField("Digest", d))
			Expect(present(ctx, d)).To(BeTrue())
		}, SpecTimeout(specTimeout))

		It("tries the next credentials when the registry does not answer those before", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			node.Upstream.Protect(repository)
			req := seed("")
			req.Credentials = []nodeagent.Credential{{Username: OverLimit, Password: Password}, {Username: User, Password: "forgotten"}}
			_, err := pull(ctx, req)
			Expect(err).To(MatchError(nodeagent.ErrRegistryUnavailable))
			Expect(err).NotTo(MatchError(nodeagent.ErrUnauthorized), "the first account may be let in later")

			req.Credentials[1].Password = Password
			Expect(pull(ctx, req)).To(HaveField("Digest", d))
		}, SpecTimeout(specTimeout))

		It("distinguishes a refusal, an unknown image and a registry that is away", func(ctx context.Context) {
			_, err := pull(ctx, seed(""))
			Expect(err).To(MatchError(nodeagent.ErrImageNotFound))

			image, _ := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			node.Upstream.Protect(repository)
			_, err = pull(ctx, seed(""))
			Expect(err).To(MatchError(nodeagent.ErrUnauthorized))

			node.Upstream.SetDown(true)
			DeferCleanup(node.Upstream.SetDown, false)
			_, err = pull(ctx, seed(""))
			Expect(err).To(MatchError(nodeagent.ErrRegistryUnavailable))
			Expect(err).NotTo(MatchError(nodeagent.ErrImageNotFound), "an outage is not final")
		}, SpecTimeout(specTimeout))

		It("returns ErrPlatformNotProvided when the image is not for the node's platform", func(ctx context.Context) {
			Expect(node.Upstream.Push(repository+":v1", foreignIndex(repository))).To(Succeed())
			_, err := pull(ctx, seed(""))
			Expect(err).To(MatchError(nodeagent.ErrPlatformNotProvided))
		}, SpecTimeout(specTimeout))

		It("keeps what it fetched before an error for the next try", func(ctx context.Context) {
			// A runtime that fetches three layers at a time may break off two others when the last
			// one fails.
			const layers, brokenOff = 6, 2
			image, err := images.Image(images.Options{Layers: images.Layers(repository, layers, layerSize)})
			Expect(err).NotTo(HaveOccurred())
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			serve := node.Upstream.Withhold(lastLayer(image))
			_, err = pull(ctx, seed(""))
			Expect(err).To(HaveOccurred())
			serve()
			Expect(pull(ctx, seed(""))).To(HaveField("Digest", artifactDigest(image)))
			var again []digest.Digest
			Expect(images.Walk(image, func(b images.Blob) error {
				d := digest.Digest(b.Digest.String())
				if node.Upstream.Fetched(d) > 1 {
					again = append(again, d)
				}
				return nil
			})).To(Succeed())
			Expect(len(again)).To(BeNumerically("<=", brokenOff), "fetched again: %v", again)
		}, SpecTimeout(specTimeout))
	})

	Context("as a peer", func() {
		It("fetches each blob once from the mirror and never asks the registry", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())

			result, err := pull(ctx, peer(d))
			Expect(err).NotTo(HaveOccurred())
			Expect(result.Source).To(Equal(v1alpha1.SourceMirror))
			Expect(result.PulledBytes).To(BeNumerically(">=", result.SizeBytes))
			Expect(present(ctx, d)).To(BeTrue())
			everyBlob(node.Mirror, image, 1)
			everyBlob(node.Upstream, image, 0)
			Expect(node.Upstream.Resolved()).To(BeZero())
			Expect(node.Mirror.Resolved()).To(BeZero())
		}, SpecTimeout(specTimeout))

		It("waits for a layer that the mirror gets later while it fetches the others, and fetches none twice", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			serve := node.Mirror.Withhold(lastLayer(image))
			var once sync.Once
			_, err := node.Runtime.Pull(ctx, peer(d), func(p nodeagent.Progress) {
				if p.PulledBytes > 2*layerSize {
					once.Do(serve) // the other two are there
				}
			})
			Expect(err).NotTo(HaveOccurred())
			Expect(present(ctx, d)).To(BeTrue())
			everyBlob(node.Mirror, image, 1)
		}, SpecTimeout(specTimeout))

		It("fetches nothing when the content is there under another name", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			other := peer(d)
			other.Ref = parse(node.Registry + "/" + repository + ":stable")

			Expect(pull(ctx, other)).To(HaveField("Source", v1alpha1.SourceLocal))
			everyBlob(node.Mirror, image, 1)
			record, _ := node.Record(other.Ref.String())
			Expect(record.Digest).To(Equal(d))
		}, SpecTimeout(specTimeout))

		It("fetches a layer that two images share once", func(ctx context.Context) {
			shared := images.Layer(repository+"-shared", layerSize)
			var all []images.Artifact
			for _, version := range []string{"a", "b"} {
				image, err := images.Image(images.Options{Layers: append(images.Layers(repository+version, 1, layerSize), shared), Seed: version})
				Expect(err).NotTo(HaveOccurred())
				Expect(node.Mirror.Push(repository+":"+version, image)).To(Succeed())
				all = append(all, image)
			}
			var both sync.WaitGroup
			for i, version := range []string{"a", "b"} {
				req := peer(artifactDigest(all[i]))
				req.Ref = parse(node.Registry + "/" + repository + ":" + version)
				both.Go(func() {
					defer GinkgoRecover()
					_, err := pull(ctx, req)
					Expect(err).NotTo(HaveOccurred())
				})
			}
			both.Wait()
			Expect(node.Mirror.Fetched(layerDigest(shared))).To(Equal(1))
		}, SpecTimeout(specTimeout))

		It("moves a name that means another digest on the node", func(ctx context.Context) {
			first, old := makeImage("old")
			Expect(node.Mirror.Push(repository+":v1", first)).To(Succeed())
			Expect(pull(ctx, peer(old))).To(HaveField("Digest", old))
			second, d := makeImage("new")
			Expect(node.Mirror.Push(repository+":v1", second)).To(Succeed())

			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			record, _ := node.Record(tag.String())
			Expect(record.Digest).To(Equal(d))
			Expect(present(ctx, d)).To(BeTrue())
		}, SpecTimeout(specTimeout))

		It("fetches the node's platform only", func(ctx context.Context) {
			index, d, foreign := multiPlatform(repository)
			Expect(node.Mirror.Push(repository+":v1", index)).To(Succeed())
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			Expect(present(ctx, d)).To(BeTrue())
			everyBlob(node.Mirror, foreign, 0)
		}, SpecTimeout(specTimeout))

		It("returns ErrNotOnMirror for a missing layer, and keeps the others", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			serve := node.Mirror.Withhold(lastLayer(image))
			impatient, cancel := context.WithTimeoutCause(ctx, 2*time.Second, nodeagent.ErrNoProgress)
			defer cancel()
			_, err := pull(impatient, peer(d))
			Expect(err).To(MatchError(nodeagent.ErrNotOnMirror))
			serve()
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			everyBlob(node.Mirror, image, 1)
		}, SpecTimeout(specTimeout))

		It("gives up by itself where no mirror answers at all", func(ctx context.Context) {
			node.Mirror.SetDown(true)
			DeferCleanup(node.Mirror.SetDown, false)
			_, d := makeImage("v1")
			_, err := pull(ctx, peer(d))
			Expect(err).To(MatchError(nodeagent.ErrNotOnMirror))
			Expect(node.Upstream.Resolved()).To(BeZero())
		}, SpecTimeout(specTimeout))

		It("returns ErrPlatformNotProvided when the image is not for the node's platform", func(ctx context.Context) {
			index := foreignIndex(repository)
			Expect(node.Mirror.Push(repository+":v1", index)).To(Succeed())
			_, err := pull(ctx, peer(artifactDigest(index)))
			Expect(err).To(MatchError(nodeagent.ErrPlatformNotProvided))
		}, SpecTimeout(specTimeout))
	})

	Context("for its mirror, which looks for the source of a blob only when it is told that the blob was created", func() {
		// eventuallySourced waits until the mirror was told of each blob so often, the last time
		// with its source.
		eventuallySourced := func(ctx context.Context, created <-chan Creation, artifact images.Artifact, times int) {
			GinkgoHelper()
			left := map[digest.Digest]int{}
			Expect(images.Walk(artifact, func(b images.Blob) error {
				left[digest.Digest(b.Digest.String())] = times
				return nil
			})).To(Succeed())
			host := (&url.URL{Host: node.Registry}).Hostname()
			for len(left) > 0 {
				var c Creation
				Eventually(ctx, created).Should(Receive(&c))
				if left[c.Digest]--; left[c.Digest] > 0 {
					continue
				}
				Expect(c.Labels).To(HaveKeyWithValue("containerd.io/distribution.source."+host, repository), c.Digest.String())
				delete(left, c.Digest)
			}
		}

		DescribeTable("tells it of each blob once more at the end of a pull, because the label may have come too late",
			func(ctx context.Context, request func(digest.Digest) nodeagent.PullRequest) {
				image, d := makeImage("v1")
				Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
				Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
				created := node.Created(ctx)
				Expect(pull(ctx, request(d))).To(HaveField("Digest", d))
				eventuallySourced(ctx, created, image, 2)
			},
			Entry("as a seed", seed, SpecTimeout(specTimeout)),
			Entry("as a peer", peer, SpecTimeout(specTimeout)),
		)

		It("labels content that was there without a source, and tells of it", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Upstream.Push(repository+":v1", image)).To(Succeed())
			Expect(pull(ctx, seed(d))).To(HaveField("Digest", d))
			Expect(images.Walk(image, func(b images.Blob) error {
				node.Unlabel(digest.Digest(b.Digest.String()))
				return nil
			})).To(Succeed())
			created := node.Created(ctx)
			Expect(pull(ctx, seed(d))).To(HaveField("Source", v1alpha1.SourceLocal))
			eventuallySourced(ctx, created, image, 1)
		}, SpecTimeout(specTimeout))
	})

	Context("when it checks an image", func() {
		It("misses a name that was deleted, and one that was moved", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			node.Delete(tag.WithDigest(d).String())
			Expect(present(ctx, d)).To(BeFalse())
			Expect(pull(ctx, peer(d))).To(HaveField("Source", v1alpha1.SourceLocal))
			Expect(present(ctx, d)).To(BeTrue())

			other, old := makeImage("v2")
			Expect(node.Mirror.Push(repository+":v2", other)).To(Succeed())
			elsewhere := peer(old)
			elsewhere.Ref = parse(node.Registry + "/" + repository + ":v2")
			Expect(pull(ctx, elsewhere)).To(HaveField("Digest", old))
			node.Point(tag.String(), old, false)
			Expect(present(ctx, d)).To(BeFalse())
		}, SpecTimeout(specTimeout))
	})

	Context("when it is to retain images", func() {
		It("removes its own pins from names that are not listed, and keeps those of others", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			theirs := node.Registry + "/" + repository + ":theirs"
			node.Point(theirs, d, true)
			pins := func() (all []bool) {
				for _, name := range append(tag.Names(d), theirs) {
					record, _ := node.Record(name)
					all = append(all, record.Pinned)
				}
				return all
			}
			Expect(pins()).To(Equal([]bool{true, true, true}))
			Expect(node.Runtime.Retain(ctx, []nodeagent.Retained{{Ref: tag, Digest: d}})).To(Succeed())
			Expect(pins()).To(Equal([]bool{false, false, true}), "BestEffort")
			Expect(node.Runtime.Retain(ctx, []nodeagent.Retained{{Ref: tag, Digest: d, Pinned: true}})).To(Succeed())
			Expect(pins()).To(Equal([]bool{true, true, true}), "Pinned again")
			Expect(node.Runtime.Retain(ctx, []nodeagent.Retained{{Ref: parse(theirs), Digest: d, Pinned: true}})).To(Succeed())
			Expect(node.Runtime.Retain(ctx, nil)).To(Succeed())
			Expect(pins()).To(Equal([]bool{false, false, true}), "no longer wanted")
			Expect(present(ctx, d)).To(BeTrue(), "no image is deleted")
		}, SpecTimeout(specTimeout))
	})

	Context("when it is watched", func() {
		It("reports names that come and go", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			watching, cancel := context.WithCancel(ctx)
			connected, ended := make(chan struct{}), make(chan error, 1)
			changes := make(chan nodeagent.Change, 100)
			go func() {
				ended <- node.Runtime.Watch(watching, func() { close(connected) }, func(c nodeagent.Change) { changes <- c }, ignore)
			}()
			Eventually(ctx, connected).Should(BeClosed())
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))
			Eventually(ctx, changes).Should(Receive(Equal(nodeagent.Change{Name: tag.String()})))
			node.Delete(tag.String())
			Eventually(ctx, changes).Should(Receive(Equal(nodeagent.Change{Name: tag.String(), Deleted: true})))
			cancel()
			Eventually(ctx, ended).Should(Receive(HaveOccurred()))
		}, SpecTimeout(specTimeout))

		It("tells once what is wrong on the node, and again when a pull meets with more", func(ctx context.Context) {
			image, d := makeImage("v1")
			Expect(node.Mirror.Push(repository+":v1", image)).To(Succeed())
			watching, cancel := context.WithCancel(ctx)
			found, ended := make(chan []nodeagent.Finding, 100), make(chan error, 1)
			go func() {
				ended <- node.Runtime.Watch(watching, func() {}, func(nodeagent.Change) {}, func(all []nodeagent.Finding) { found <- all })
			}()
			spoiled := HaveField("Subject", ContainSubstring(node.Registry))
			Eventually(ctx, found).Should(Receive(Not(ContainElement(spoiled))))
			Expect(pull(ctx, peer(d))).To(HaveField("Digest", d))

			node.Spoil()
			other, moved := makeImage("v2")
			Expect(node.Mirror.Push(repository+":v1", other)).To(Succeed())
			Expect(pull(ctx, peer(moved))).To(HaveField("Digest", moved))
			var all []nodeagent.Finding
			Eventually(ctx, found).Should(Receive(&all))
			Expect(all).To(ContainElement(spoiled))
			Expect(all).NotTo(ContainElement(HaveField("Severity", nodeagent.SeverityOK)))
			cancel()
			Eventually(ctx, ended).Should(Receive(HaveOccurred()))
			Expect(found).To(BeEmpty(), "nothing is told twice")
		}, SpecTimeout(specTimeout))

		It("returns when the runtime no longer answers, and connects again when it does", Serial, func(ctx context.Context) {
			watching, cancel := context.WithCancel(ctx)
			connected, ended := make(chan struct{}, 1), make(chan error, 1)
			watch := func() {
				ended <- node.Runtime.Watch(watching, func() { connected <- struct{}{} }, func(nodeagent.Change) {}, ignore)
			}
			go watch()
			Eventually(ctx, connected).Should(Receive())
			resume := node.Hang()
			DeferCleanup(resume)
			Eventually(ctx, ended).Should(Receive(MatchError(nodeagent.ErrRuntimeUnavailable)))
			Expect(node.Runtime.Watch(ctx, func() {}, func(nodeagent.Change) {}, ignore)).To(MatchError(nodeagent.ErrRuntimeUnavailable))

			resume()
			go watch()
			Eventually(ctx, connected).Should(Receive())
			cancel()
			Eventually(ctx, ended).Should(Receive(HaveOccurred()))
		}, SpecTimeout(2*specTimeout))
	})
}
