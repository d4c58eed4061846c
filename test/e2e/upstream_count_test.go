// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("Several prefetches of images that share layers", Ordered, func() {
	onStackOfItsOwn(stack.Options{Nodes: cluster.Nodes(5)})

	It("fetch each blob from upstream once, although the controller and the seed's agent are killed on the way", func(ctx SpecContext) {
		base := images.Layers("shared", 2, 2*images.MiB)
		names := map[string]string{}
		content := map[string]int64{} // size by digest, of all that is to be fetched
		for _, app := range []string{"a", "b", "c"} {
			image, err := images.Image(images.Options{Layers: slices.Concat(base, images.Layers("own-"+app, 2, 4*images.MiB))})
			Expect(err).NotTo(HaveOccurred())
			names[app], _ = pushArtifact("count/"+app+":v1", image)
			maps.Copy(content, sizes(image))
		}
		namespace(ctx, "count")
		seeds, err := s.WatchSeeds(ctx)
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(seeds.Stop)
		s.Upstream.SetRate(6 * images.MiB) // some five seconds for it all

		prefetches := []*v1alpha1.ImagePrefetch{
			prefetchIn(ctx, "default", "count-1", imagesOf(names["a"], names["b"])),
			prefetchIn(ctx, "count", "count-2", imagesOf(names["b"], names["c"])),
			prefetchIn(ctx, "count", "count-3", imagesOf(names["c"], names["a"])),
		}
		eventuallySent(4 * images.MiB)
		s.Controllers()[0].Kill()
		_, err = s.RestartController(ctx, 0)
		Expect(err).NotTo(HaveOccurred())
		eventuallyInTheMiddleOfABlob()
		clients := s.Upstream.Requests().Clients()
		Expect(clients).To(HaveLen(1), "images of several prefetches with an image in common have one seed")
		seed := nodeAt(clients[0])
		s.Agent(seed).Kill()
		killed := time.Now()
		_, err = s.StartAgent(ctx, seed)
		Expect(err).NotTo(HaveOccurred())
		for _, p := range prefetches {
			eventuallyReady(ctx, p)
		}

		requests := s.Upstream.Requests()
		Expect(requests.Clients()).To(HaveLen(1), "no peer asks the upstream for anything")
		Expect(seeds.Most()).To(HaveLen(3))
		Expect(seeds.Most()).To(HaveEach(1))
		tallies := map[string]upstream.Tally{}
		for _, tally := range requests.Tallies() {
			tallies[tally.Digest] = tally
		}
		Expect(slices.Sorted(maps.Keys(tallies))).To(Equal(slices.Sorted(maps.Keys(content))))
		cut := 0
		for digest, tally := range tallies {
			gets := requests.Where(upstream.Of(digest), func(r upstream.Request) bool { return r.Method == http.MethodGet })
			if len(gets) == 1 {
				Expect(tally).To(And(HaveField("Complete", 1), HaveField("Partial", 0), HaveField("Refused", 0)))
				continue
			}
			cut++
			Expect(gets).To(HaveLen(2))
			Expect(underWay(gets[0], killed)).To(BeTrue(), "%s was sent twice without need", digest)
			AddReportEntry("cut off when the seed's agent was killed",
				fmt.Sprintf("%d of %d bytes, then from %d: %s", gets[0].Bytes, gets[0].Size, gets[1].Offset, digest))
			// containerd ends the transfer when the agent that asked for it goes, and keeps
			// what it has received. The next transfer goes on from there.
			Expect(gets[0].Bytes-gets[1].Offset).To(BeNumerically("<", onTheWay), digest)
			Expect(gets[0].Offset).To(BeZero(), digest)
			Expect(gets[1].Complete).To(BeTrue(), digest)
		}
		Expect(cut).To(BeNumerically(">", 0))
	})
})

// onTheWay is what the registry has sent and containerd not yet received, at most.
const onTheWay = images.MiB

// underWay reports whether a request was being answered at a time, or its answer had
// been sent so shortly before that the client may not have taken it in.
func underWay(r upstream.Request, at time.Time) bool {
	const takenIn = 500 * time.Millisecond
	return r.Time.Before(at) && (!r.Done || r.End.Add(takenIn).After(at))
}

// eventuallySent waits until the upstream registry has sent so much.
func eventuallySent(bytes int64) {
	GinkgoHelper()
	Eventually(func() (sent int64) {
		for _, r := range s.Upstream.Requests() {
			sent += r.Bytes
		}
		return sent
	}).WithPolling(10 * time.Millisecond).Should(BeNumerically(">=", bytes))
}

// eventuallyInTheMiddleOfABlob waits until one is being sent of which more has been
// received than nothing, and so much is missing that it is not complete in a moment.
func eventuallyInTheMiddleOfABlob() {
	GinkgoHelper()
	Eventually(func() bool {
		return slices.ContainsFunc(s.Upstream.Requests(), func(r upstream.Request) bool {
			return !r.Done && r.Bytes > onTheWay && r.Size-r.Bytes > 2*images.MiB
		})
	}).WithPolling(10 * time.Millisecond).Should(BeTrue())
}

// sizes are those of all that an image consists of, by digest.
func sizes(image v1.Image) map[string]int64 {
	GinkgoHelper()
	all := map[string]int64{}
	Expect(images.Walk(image, func(b images.Blob) error {
		all[b.Digest.String()] = b.Size
		return nil
	})).To(Succeed())
	return all
}

func nodeAt(address string) *cluster.Node {
	GinkgoHelper()
	for _, node := range s.Cluster.Nodes() {
		if node.IP == address {
			return node
		}
	}
	Fail("no node has the address " + address)
	return nil
}

// namespace makes one that goes with its spec.
func namespace(ctx context.Context, name string) {
	GinkgoHelper()
	object := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	Expect(s.Client.Create(ctx, object)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(client.IgnoreNotFound(s.Client.Delete(ctx, object))).To(Succeed()) })
}
