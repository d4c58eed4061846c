// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

// round is one distribution, and the fault in its middle.
type round struct {
	*supervisedCluster
	*WithT
	number int
	fault  fault
	dice   *rand.Rand

	digests    map[string]string // of the images, by name
	content    map[string]int64  // sizes of all that is to be fetched, by digest
	prefetches []*v1alpha1.ImagePrefetch

	struck, repaired time.Time
	lost             *cluster.Node
}

func newRound(c *supervisedCluster, n int) *round {
	return &round{
		supervisedCluster: c, WithT: NewWithT(c.T), number: n, fault: deal(n), dice: rand.New(rand.NewPCG(*seed, uint64(n)<<32)),
		digests: map[string]string{}, content: map[string]int64{},
	}
}

func (r *round) play(ctx context.Context) {
	r.push()
	r.Upstream.Reset()
	r.prefetch(ctx)
	r.strike(ctx)
	r.converge(ctx)
	r.judge(ctx)
	for _, p := range r.prefetches {
		r.Expect(r.Client.Delete(ctx, p)).To(Succeed())
	}
	if r.lost != nil {
		r.Expect(r.comeBack(ctx)).To(Succeed())
	}
}

// push makes two images that share layers; no other round has content like theirs.
func (r *round) push() {
	shared := images.Layers(fmt.Sprintf("round-%d", r.number), 2, images.MiB)
	for _, app := range []string{"a", "b"} {
		own := images.Layers(fmt.Sprintf("round-%d-%s", r.number, app), 2, images.MiB)
		image, err := images.Image(images.Options{Layers: slices.Concat(shared, own)})
		r.Expect(err).NotTo(HaveOccurred())
		ref := fmt.Sprintf("round-%d/%s:v1", r.number, app)
		r.Expect(r.Push(ref, image)).To(Succeed())
		digest, err := image.Digest()
		r.Expect(err).NotTo(HaveOccurred())
		r.digests[stack.Registry+"/"+ref] = digest.String()
		r.take(image)
	}
}

func (r *round) take(image v1.Image) {
	r.Expect(images.Walk(image, func(b images.Blob) error {
		r.content[b.Digest.String()] = b.Size
		return nil
	})).To(Succeed())
}

// prefetch applies two prefetches, in two namespaces, with an image in common.
func (r *round) prefetch(ctx context.Context) {
	names := slices.Sorted(maps.Keys(r.digests))
	for namespace, wanted := range map[string][]string{"default": names, other: names[1:]} {
		p := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("round-%d", r.number)}}
		for _, name := range wanted {
			p.Spec.Images = append(p.Spec.Images, v1alpha1.ImageReference(name))
		}
		r.Expect(r.Client.Create(ctx, p)).To(Succeed())
		r.prefetches = append(r.prefetches, p)
	}
}

// strike waits for the moment, has the fault happen, and ends it after a while. The
// moment is so many bytes sent by the registry, or some time after the last one.
func (r *round) strike(ctx context.Context) {
	var total int64
	for _, size := range r.content {
		total += size
	}
	moment, after := r.dice.Int64N(total*5/4), time.Duration(0)
	if moment > total {
		moment, after = total, time.Duration(r.dice.Int64N(int64(2*time.Second)))
	}
	lasts := r.fault.least
	if r.fault.longest > r.fault.least {
		lasts += time.Duration(r.dice.Int64N(int64(r.fault.longest - r.fault.least)))
	}
	r.Eventually(r.sent, bound, 5*time.Millisecond).Should(BeNumerically(">=", moment))
	r.Expect(wait(ctx, after)).To(Succeed())
	r.Logf("round %d: %s, for %v, %v after %d KiB of %d", r.number, r.fault.name,
		lasts.Round(10*time.Millisecond), after.Round(10*time.Millisecond), moment/images.KiB, total/images.KiB)

	r.struck = time.Now()
	repair, err := r.fault.strike(ctx, r)
	r.Expect(err).NotTo(HaveOccurred())
	if repair != nil {
		r.Expect(wait(ctx, lasts)).To(Succeed())
		r.Expect(repair(ctx)).To(Succeed())
	}
	r.repaired = time.Now()
}

// sent is how much the registry has sent.
func (r *round) sent() (bytes int64) {
	for _, request := range r.Upstream.Requests() {
		bytes += request.Bytes
	}
	return bytes
}

// victim is the seed or another node, as likely.
func (r *round) victim() *cluster.Node {
	all := r.Cluster.Nodes()
	victim := all[r.dice.IntN(len(all))]
	if clients := r.Upstream.Requests().Clients(); r.dice.IntN(2) == 0 && len(clients) > 0 {
		if seed := r.nodeAt(clients[0]); seed != nil {
			victim = seed
		}
	}
	r.Logf("round %d: it befalls %s", r.number, victim.Name)
	return victim
}

// converge waits until all prefetches are Ready, and looks whether that is true.
func (r *round) converge(ctx context.Context) {
	for _, p := range r.prefetches {
		r.Eventually(func(g Gomega) {
			g.Expect(r.Client.Get(ctx, client.ObjectKeyFromObject(p), p)).To(Succeed())
			ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
			g.Expect(ready).To(HaveField("Status", metav1.ConditionTrue))
			g.Expect(p.Status.DesiredNodes).To(BeEquivalentTo(len(r.Cluster.Nodes())))
		}, bound, 50*time.Millisecond).Should(Succeed(), r.describe)
	}
	r.Logf("round %d: all is well %v after the fault was over", r.number, time.Since(r.repaired).Round(10*time.Millisecond))
	r.everyNodeHasAll(ctx, r)
}

// everyNodeHasAll expects the images on the nodes that are left: under both names that a Pod
// may use, with all their content, unpacked.
func (r *round) everyNodeHasAll(ctx context.Context, g Gomega) {
	want := map[string]string{}
	for name, digest := range r.digests {
		want[name] = digest
		want[strings.TrimSuffix(name, ":v1")+"@"+digest] = digest
	}
	for _, node := range r.Cluster.Nodes() {
		images, err := node.Images(ctx, slices.Collect(maps.Keys(want))...)
		g.Expect(err).NotTo(HaveOccurred())
		found := map[string]string{}
		for name, image := range images {
			found[name] = image.String()
		}
		g.Expect(found).To(Equal(want), "on %s", node.Name)
	}
}

// describe is what one wants to see when a round fails.
func (r *round) describe() string {
	var text strings.Builder
	for _, p := range r.prefetches {
		fmt.Fprintf(&text, "%s/%s: %+v\n", p.Namespace, p.Name, p.Status)
	}
	fmt.Fprintln(&text, r.report())
	return text.String()
}

func (r *round) report() string {
	var text strings.Builder
	_ = r.Upstream.Requests().Report(&text, r.Names())
	for _, q := range r.Upstream.Requests() {
		end := "still running"
		if q.Done {
			end = q.End.Format("05.000")
		}
		fmt.Fprintf(&text, "%s to %s %s %s %.19s status %d, %d bytes from %d\n", q.Time.Format("15:04:05.000"), end, q.Client, q.Method, q.Digest, q.Status, q.Bytes, q.Offset)
	}
	fmt.Fprintf(&text, "struck %s, repaired %s\n", r.struck.Format("15:04:05.000"), r.repaired.Format("15:04:05.000"))
	return text.String()
}

// judge counts what the upstream was asked.
func (r *round) judge(_ context.Context) {
	names := slices.Sorted(maps.Keys(r.digests))
	most := r.seeds.Most()
	for _, name := range names {
		r.Expect(most[name]).To(Equal(1), "at most one node at a time may ask the upstream for %s: %s", name, r.seeds.When(name))
	}
	requests := r.Upstream.Requests()
	seeds := r.seeds.Ever(names...)
	for _, request := range requests {
		node := r.Names()[request.Client]
		if r.lost != nil && request.Client == r.lost.IP {
			node = r.lost.Name
		}
		r.Expect(seeds).To(ContainElement(node), "%s asked the upstream, and was never told to:\n%s", node, r.report())
	}
	if !r.fault.replaces {
		r.Expect(seeds).To(HaveLen(1), "the fault is no reason for a second seed:\n%s", r.report())
	}
	for digest, size := range r.content {
		var whole, all int
		var unexcused upstream.Requests
		for _, request := range requests.Where(upstream.Of(digest), got) {
			all++
			if !r.excused(request) {
				unexcused = append(unexcused, request)
			}
			if request.Complete && request.Offset == 0 {
				whole++
			}
		}
		r.Expect(all).To(BeNumerically(">=", 1), "%s came from nowhere", digest)
		if r.fault.fallsBack {
			r.Expect(whole).To(BeNumerically("<=", nodes), "%s was fetched by a node more than once:\n%s", digest, r.report())
			continue
		}
		r.Expect(sentAgain(size, unexcused)).To(BeFalse(), "%s was fetched more than once:\n%s", digest, r.report())
		r.Expect(whole).To(BeNumerically("<=", 2), "%s was fetched again more than once:\n%s", digest, r.report())
	}
	r.spy()
}

// unread is what a transfer that was cut may have sent and its node not read: the next one goes on from
// what was read.
const unread = 256 << 10

// sentAgain reports whether content of a size was sent more than once: from its first byte on, or more
// of it than there is. A transfer that goes on where one was cut sends the rest.
func sentAgain(size int64, requests upstream.Requests) bool {
	starts, sent, most := 0, int64(0), size
	for _, request := range requests {
		if request.Offset == 0 {
			starts++
		}
		sent += request.Bytes
		if !request.Complete {
			most += unread
		}
	}
	return starts > 1 || sent > most
}

// got picks requests that content was sent in answer to.
func got(request upstream.Request) bool {
	return request.Method == http.MethodGet && request.Status/100 == 2 && request.Bytes > 0
}

// excused reports whether the fault explains why content had to be sent again: the fault cuts
// transfers and this one was on its way while it lasted, or it was sent to a node that is lost.
func (r *round) excused(request upstream.Request) bool {
	// A client needs a moment to take in what was sent to it.
	const moment = 500 * time.Millisecond
	underWay := request.Time.Before(r.repaired.Add(moment)) && (!request.Done || request.End.Add(moment).After(r.struck))
	return r.fault.cuts && underWay || r.lost != nil && request.Client == r.lost.IP
}

// spy shows the race detector's findings in the round that they were made in.
func (r *round) spy() {
	processes := r.Controllers()
	for _, node := range r.Cluster.Nodes() {
		processes = append(processes, r.Agent(node))
	}
	for _, process := range processes {
		log, err := os.ReadFile(process.Log)
		r.Expect(err).NotTo(HaveOccurred())
		r.Expect(string(log)).NotTo(ContainSubstring("WARNING: DATA RACE"))
		r.Expect(string(log)).NotTo(ContainSubstring("panic:"))
	}
}
