// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/audit"
)

// The intervals are those of docs/benchmarks.md. The code has them as minProgressInterval and
// maxProgressInterval in nodeagent, and as statusInterval in controllers/distribution.
const (
	firstProgress = 2 * time.Second
	mostProgress  = 30 * time.Second
	betweenCounts = 2 * time.Second
	// onItsWay is how much longer than another a report may be on its way to the API server.
	onItsWay = time.Second
)

// progressPause is how long a node that has reported so often since it told of a pull does not
// report its progress again.
func progressPause(reports int) time.Duration {
	pause := firstProgress
	for ; reports > 1 && pause < mostProgress; reports-- {
		pause *= 2
	}
	return min(pause, mostProgress)
}

// progressWithin is how often the progress of a pull is reported at most in the time since the
// first report of that pull: after 2 s, 6 s, 14 s, 30 s, and then every 30 s.
func progressWithin(elapsed time.Duration) (reports int) {
	for at := progressPause(1); at < elapsed; at += progressPause(reports + 1) {
		reports++
	}
	return reports
}

// cost is what a distribution cost the API server. Each write is counted in one place.
type cost struct {
	writes audit.Writes
	nodes  map[string]*nodeCost
	// told are the statuses of the ImagePrefetch that somebody waits for, and counts those in
	// which only counts differ.
	told, counts, events int
	// stale are the writes that were rejected, because the object had changed.
	stale  int
	others audit.Writes
	// early are the writes that came sooner than an interval permits.
	early []string

	prefetch   *v1alpha1.ImagePrefetchStatus
	prefetchAt time.Time
}

// nodeCost is what was written of one node's set.
type nodeCost struct {
	entries int // writes of the spec
	// told are the reports that say something new, progress those in which only differs how much has
	// come of images that are still pulled, and heartbeats those in which nothing does.
	told, progress, heartbeats int

	status v1alpha1.NodeImageSetStatus
	at     time.Time
	pulls  map[string]*pull // by image, as reported
}

// pull is what was reported of one.
type pull struct {
	started     *metav1.Time
	reports     int
	first, last time.Time
}

// costOf sorts the writes of one distribution.
func costOf(writes audit.Writes) *cost {
	GinkgoHelper()
	c := &cost{writes: writes, nodes: map[string]*nodeCost{}}
	for _, w := range writes {
		switch {
		case w.Status == http.StatusConflict && (w.Resource == "nodeimagesets" || w.Resource == "imageprefetches/status"):
			c.stale++
		case w.Status >= http.StatusMultipleChoices:
			c.others = append(c.others, w)
		case w.Resource == "nodeimagesets":
			var set v1alpha1.NodeImageSet
			Expect(json.Unmarshal(w.Object, &set)).To(Succeed())
			c.node(set.Name).entries++
		case w.Resource == "nodeimagesets/status":
			c.addReport(w)
		case w.Resource == "imageprefetches/status":
			c.addStatus(w)
		case w.Resource == "events":
			c.events++
		default:
			c.others = append(c.others, w)
		}
	}
	return c
}

func (c *cost) node(name string) *nodeCost {
	if c.nodes[name] == nil {
		c.nodes[name] = &nodeCost{pulls: map[string]*pull{}}
	}
	return c.nodes[name]
}

func (c *cost) addReport(w audit.Write) {
	GinkgoHelper()
	var set v1alpha1.NodeImageSet
	Expect(json.Unmarshal(w.Object, &set)).To(Succeed())
	n := c.node(set.Name)
	switch {
	case !equality.Semantic.DeepEqual(withoutProgress(n.status), withoutProgress(set.Status)):
		n.told++
	case !n.status.LastHeartbeatTime.Equal(set.Status.LastHeartbeatTime):
		n.heartbeats++
		if gap := w.Time.Sub(n.at); gap < v1alpha1.HeartbeatInterval-onItsWay {
			c.early = append(c.early, fmt.Sprintf("heartbeat of %s %.1f s after the last report", set.Name, gap.Seconds()))
		}
	default:
		n.progress++
		if pause, gap := n.pause(), w.Time.Sub(n.at); gap < pause-onItsWay {
			c.early = append(c.early, fmt.Sprintf("progress of %s %.1f s after the last report, not %v", set.Name, gap.Seconds(), pause))
		}
	}
	n.status, n.at = set.Status, w.Time
	for _, image := range set.Status.Images {
		n.follow(image, w.Time)
	}
}

// follow takes up what a report says of one image.
func (n *nodeCost) follow(image v1alpha1.NodeImageStatus, at time.Time) {
	p := n.pulls[image.Name]
	if image.State == v1alpha1.ImagePulling && (p == nil || !p.started.Equal(image.StartedAt)) {
		p = &pull{started: image.StartedAt, first: at}
		n.pulls[image.Name] = p
	}
	switch {
	case p == nil:
	case image.State == v1alpha1.ImagePulling:
		p.reports++
		p.last = at
	case p.reports > 0: // the report of the end
		p.reports, p.last = 0, at
	}
}

// pause is the least time until the next report of progress: a report has the progress of all
// pulls, and the pull that was reported least often is the first to be reported again.
func (n *nodeCost) pause() time.Duration {
	pause := mostProgress
	for _, p := range n.pulls {
		if p.reports > 0 {
			pause = min(pause, progressPause(p.reports))
		}
	}
	return pause
}

// permitted is how many reports of progress the time of the node's pulls permits.
func (n *nodeCost) permitted() (reports int) {
	for _, p := range n.pulls {
		reports += progressWithin(p.last.Sub(p.first) + onItsWay)
	}
	return reports
}

// withoutProgress leaves out how much has come of images that are still pulled, and the heartbeat.
func withoutProgress(status v1alpha1.NodeImageSetStatus) v1alpha1.NodeImageSetStatus {
	status = *status.DeepCopy()
	status.LastHeartbeatTime = nil
	for i := range status.Images {
		if image := &status.Images[i]; image.State == v1alpha1.ImagePulling {
			image.PulledBytes, image.SizeBytes, image.FinishedAt = 0, 0, nil
		}
	}
	return status
}

func (c *cost) addStatus(w audit.Write) {
	GinkgoHelper()
	var p v1alpha1.ImagePrefetch
	Expect(json.Unmarshal(w.Object, &p)).To(Succeed())
	switch gap := w.Time.Sub(c.prefetchAt); {
	case c.prefetch == nil || tellsMore(c.prefetch, &p.Status):
		c.told++
	default:
		c.counts++
		if gap < betweenCounts {
			c.early = append(c.early, fmt.Sprintf("counts %.1f s after the last status, not %v", gap.Seconds(), betweenCounts))
		}
	}
	c.prefetch, c.prefetchAt = &p.Status, w.Time
}

// tellsMore reports whether more than counts differs.
func tellsMore(before, after *v1alpha1.ImagePrefetchStatus) bool {
	outline := func(status *v1alpha1.ImagePrefetchStatus) (all []string) {
		for _, condition := range status.Conditions {
			all = append(all, condition.Type, string(condition.Status), condition.Reason)
		}
		for _, image := range status.Images {
			all = append(all, image.Name, image.Digest)
		}
		return all
	}
	return !slices.Equal(outline(before), outline(after))
}

// permittedCounts is how many statuses in which only counts differ the time permits.
func (c *cost) permittedCounts() int {
	if len(c.writes) == 0 {
		return 0
	}
	return int(c.writes[len(c.writes)-1].Time.Sub(c.writes[0].Time) / betweenCounts)
}

// permittedHeartbeats is how many heartbeats of a node the time permits.
func (c *cost) permittedHeartbeats() int {
	return int(c.writes[len(c.writes)-1].Time.Sub(c.writes[0].Time) / v1alpha1.HeartbeatInterval)
}

// reports are those of all nodes, and progress the ones of progress alone.
func (c *cost) reports() (all int) {
	for _, n := range c.nodes {
		all += n.told + n.progress + n.heartbeats
	}
	return all
}

func (c *cost) progress() (all int) {
	for _, n := range c.nodes {
		all += n.progress
	}
	return all
}

func (c *cost) String() string {
	var text strings.Builder
	took := time.Duration(0)
	if len(c.writes) > 0 {
		took = c.writes[len(c.writes)-1].Time.Sub(c.writes[0].Time)
	}
	fmt.Fprintf(&text, "%d in %.1f s; ImagePrefetch: %d told, %d of counts (at most %d), %d events; %d stale\n",
		len(c.writes), took.Seconds(), c.told, c.counts, c.permittedCounts(), c.events, c.stale)
	for _, name := range slices.Sorted(maps.Keys(c.nodes)) {
		n := c.nodes[name]
		fmt.Fprintf(&text, "%s: %d of the spec; reports: %d told, %d of progress (at most %d), %d heartbeats\n",
			name, n.entries, n.told, n.progress, n.permitted(), n.heartbeats)
	}
	return text.String() + c.writes.Report()
}
