// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/distribution/plan"
)

const (
	appV1 = "ghcr.io/org/app:v1"
	webV1 = "ghcr.io/org/web:v1"
	one   = "sha256:1111"
	two   = "sha256:2222"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// inputBuilder builds a statusInput: one prefetch of generation 3, and nodes with their answers.
type inputBuilder struct {
	statusInput
}

func prefetchOf(images ...v1alpha1.ImageReference) *inputBuilder {
	object := &v1alpha1.ImagePrefetch{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app", UID: "u1", Generation: 3},
		Spec:       v1alpha1.ImagePrefetchSpec{Images: images},
	}
	s := &inputBuilder{statusInput{
		now: noon, nodes: map[string]*observedNode{}, mirrorFallback: true,
		outcome: plan.Outcome{Digests: map[string]plan.Resolved{}},
	}}
	s.prefetch = observePrefetch(object, &referenceMemo{}, false, nil)
	return s
}

func (s *inputBuilder) resolved(image, digest string) *inputBuilder {
	s.outcome.Digests[image] = plan.Resolved{Digest: digest}
	return s
}

// node adds a desired node with its entries.
func (s *inputBuilder) node(name string, answers ...v1alpha1.NodeImageStatus) *inputBuilder {
	s.outcome.Nodes = append(s.outcome.Nodes, name)
	node := &observedNode{planNode: plan.Node{Name: name, Entries: map[string]plan.Entry{}}}
	for _, answer := range answers {
		policy := v1alpha1.RegistryPolicyMirror
		if answer.Source == v1alpha1.SourceUpstream {
			policy = v1alpha1.RegistryPolicyDefault
		}
		node.planNode.Entries[answer.Name] = plan.Entry{
			Wanted: &v1alpha1.NodeImage{Name: answer.Name, RegistryPolicy: policy}, Status: &answer,
		}
	}
	s.nodes[name] = node
	return s
}

func (s *inputBuilder) with(change func(*inputBuilder)) *inputBuilder {
	change(s)
	return s
}

func (s *inputBuilder) summarize() v1alpha1.ImagePrefetchStatus {
	s.anyNodeHas = nodesHave(s.nodes)
	return summarize(s.statusInput)
}

func present(image, digest string) v1alpha1.NodeImageStatus {
	return v1alpha1.NodeImageStatus{Name: image, State: v1alpha1.ImagePresent, Digest: digest, Source: v1alpha1.SourceMirror, SizeBytes: 10}
}

func pulling(image, digest string) v1alpha1.NodeImageStatus {
	return v1alpha1.NodeImageStatus{Name: image, State: v1alpha1.ImagePulling, Digest: digest, Source: v1alpha1.SourceMirror}
}

func fails(image string, state v1alpha1.ImageState, reason string) v1alpha1.NodeImageStatus {
	return v1alpha1.NodeImageStatus{Name: image, State: state, Reason: reason, Message: "because"}
}

func upstream(status v1alpha1.NodeImageStatus) v1alpha1.NodeImageStatus {
	status.Source = v1alpha1.SourceUpstream
	return status
}

// asking gives a node a digest under a tag that it asks for again, without success so far.
func asking(node, digest, reason string, attempts int32) func(*inputBuilder) {
	return func(s *inputBuilder) {
		answer := present(appV1, digest)
		answer.Request, answer.Reason, answer.Attempts = "m1", reason, attempts
		s.nodes[node].planNode.Entries[appV1] = plan.Entry{Status: &answer, Wanted: &v1alpha1.NodeImage{
			Name: appV1, Digest: digest, Request: "m2", RegistryPolicy: v1alpha1.RegistryPolicyDefault, ImageDownloadRetryLimit: ptr.To[int32](3),
		}}
	}
}

func TestConditions(t *testing.T) {
	allow := func(tolerance intstr.IntOrString) func(*inputBuilder) {
		return func(s *inputBuilder) { s.prefetch.object.Spec.FailureTolerance = &tolerance }
	}
	notFound := upstream(fails(appV1, v1alpha1.ImageFailed, v1alpha1.ReasonImageNotFound))
	conflict := apierrors.NewForbidden(v1alpha1.SchemeGroupVersion.WithResource("nodeimagesets").GroupResource(), "b", errors.New("no"))
	tests := []struct {
		because  string
		of       *inputBuilder
		ready    string // status, reason and message
		degraded string
	}{
		{
			"nothing is known of a tag before a node has asked the registry",
			prefetchOf(appV1, webV1).node("a").node("b"),
			"False WaitingForSeeds: 0 of 2 nodes have all 2 images; 2 images are to be resolved", "",
		}, {
			"the nodes have different images under a name that is local to them",
			prefetchOf(appV1).node("a", present(appV1, one)).node("b", present(appV1, two)).with(func(s *inputBuilder) {
				s.outcome.Undecided = map[string]*plan.Disagreement{appV1: {Nodes: [2]string{"a", "b"}, Digests: [2]string{one, two}}}
			}),
			"False NodesDisagree: " + appV1 + " is local to the nodes, and means different images there: " + one + " on a, " + two + " on b; " +
				"import the same image on every node, for several architectures one index", "",
		}, {
			"some node lacks an image that is local to the nodes",
			prefetchOf(appV1).node("a", present(appV1, one)).node("b").with(func(s *inputBuilder) {
				s.outcome.Undecided = map[string]*plan.Disagreement{appV1: nil}
			}),
			"False NodesDisagree: " + appV1 + " is local to the nodes, and not all of them have it: import it on every node; " +
				"spec.failureTolerance does not count here", "",
		}, {
			"a digest that no node has is still on its way into the cluster",
			prefetchOf(appV1).resolved(appV1, one).node("a", upstream(pulling(appV1, one))).node("b", pulling(appV1, one)),
			"False WaitingForSeeds: 0 of 2 nodes have the image; 2 pulling; 1 image is on the way to a first node", "",
		}, {
			"once each image is on some node, the rest is distribution",
			prefetchOf(appV1, webV1).resolved(appV1, one).resolved(webV1, two).
				node("a", present(appV1, one), present(webV1, two)).node("b", present(appV1, one), pulling(webV1, two)).node("c"),
			"False Distributing: 1 of 3 nodes have all 2 images; 1 pulling", "",
		}, {
			"a node outside the prefetch counts as well: the image is in the cluster",
			prefetchOf(appV1).resolved(appV1, one).node("b", present(appV1, one)).with(func(s *inputBuilder) { s.outcome.Nodes = []string{"a"} }),
			"False Distributing: 0 of 1 node has the image", "",
		}, {
			"all nodes have all images",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", present(appV1, one)),
			"True AllNodesHoldImages: 2 of 2 nodes have the image", "",
		}, {
			"another digest under the same tag is not the image",
			prefetchOf(appV1).resolved(appV1, two).node("a", present(appV1, two)).node("b", present(appV1, one)),
			"False Distributing: 1 of 2 nodes have the image", "",
		}, {
			"while the tag is resolved again, what nodes have does not count",
			prefetchOf(appV1).node("a", present(appV1, one)),
			"False WaitingForSeeds: 0 of 1 node has the image; 1 image is to be resolved", "",
		}, {
			"but it counts for a prefetch whose tag is resolved",
			prefetchOf(appV1).resolved(appV1, one).node("a").with(asking("a", one, v1alpha1.ReasonRegistryUnavailable, 9)),
			"True AllNodesHoldImages: 1 of 1 node has the image", "",
		}, {
			"a prefetch whose tag is asked for again shows the failure",
			prefetchOf(appV1).node("a").with(asking("a", one, v1alpha1.ReasonRegistryUnavailable, 1)),
			"False WaitingForSeeds: 0 of 1 node has the image; 1 trying again (RegistryUnavailable); 1 image is to be resolved",
			"NodeFailures: 1 node is trying again (RegistryUnavailable)",
		}, {
			"and counts it after the last try",
			prefetchOf(appV1).node("a").with(asking("a", one, v1alpha1.ReasonRegistryUnavailable, 4)),
			"False NodesFailed: 0 of 1 node has the image; 1 failed (RegistryUnavailable); see status.failures",
			"NodeFailures: 1 node failed (RegistryUnavailable)",
		}, {
			"or at once if another try cannot help",
			prefetchOf(appV1).node("a").with(asking("a", one, v1alpha1.ReasonImagePullUnauthorized, 1)),
			"False NodesFailed: 0 of 1 node has the image; 1 failed (ImagePullUnauthorized); see status.failures",
			"NodeFailures: 1 node failed (ImagePullUnauthorized)",
		}, {
			"a digest in the name needs no resolving",
			prefetchOf("ghcr.io/org/app@sha256:"+v1alpha1.ImageReference(strings.Repeat("1", 64))).
				node("a", present("ghcr.io/org/app@sha256:"+strings.Repeat("1", 64), "sha256:"+strings.Repeat("1", 64))),
			"True AllNodesHoldImages: 1 of 1 node has the image", "",
		}, {
			"an image that the spec of the node does not name any more is not kept there",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).with(func(s *inputBuilder) {
				s.nodes["a"].planNode.Entries[appV1] = plan.Entry{Status: ptr.To(present(appV1, one))}
			}),
			"False Distributing: 0 of 1 node has the image", "",
		}, {
			"no node at all is never Ready",
			prefetchOf(appV1),
			"False NoMatchingNodes: no node matches spec.nodeSelector and spec.nodeAffinity, runs Linux, is Ready and schedulable, " +
				"and has only taints that spec.tolerations tolerates: change the spec or the nodes", "",
		}, {
			"a failure counts against the tolerance, which is none by default",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", notFound),
			"False NodesFailed: 1 of 2 nodes have the image; 1 failed (ImageNotFound); see status.failures",
			"NodeFailures: 1 node failed (ImageNotFound)",
		}, {
			"as many failures as are allowed do not keep Ready from being True",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", notFound).with(allow(intstr.FromInt32(1))),
			"True FailuresTolerated: 1 of 2 nodes have the image; 1 failed (ImageNotFound); spec.failureTolerance allows 1",
			"NodeFailures: 1 node failed (ImageNotFound)",
		}, {
			"allowed failures do not make up for nodes that still pull",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", notFound).node("c", pulling(appV1, one)).with(allow(intstr.FromInt32(2))),
			"False Distributing: 1 of 3 nodes have the image; 1 pulling; 1 failed (ImageNotFound)",
			"NodeFailures: 1 node failed (ImageNotFound)",
		}, {
			"a percentage is rounded down: a third of two nodes is none",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", notFound).with(allow(intstr.FromString("33%"))),
			"False NodesFailed: 1 of 2 nodes have the image; 1 failed (ImageNotFound); see status.failures",
			"NodeFailures: 1 node failed (ImageNotFound)",
		}, {
			"half of two nodes is one",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", notFound).with(allow(intstr.FromString("50%"))),
			"True FailuresTolerated: 1 of 2 nodes have the image; 1 failed (ImageNotFound); spec.failureTolerance allows 1",
			"NodeFailures: 1 node failed (ImageNotFound)",
		}, {
			"a pull that is tried again is shown, though nothing has failed for good",
			prefetchOf(appV1).node("a", upstream(fails(appV1, v1alpha1.ImagePending, v1alpha1.ReasonRegistryUnavailable))).node("b"),
			"False WaitingForSeeds: 0 of 2 nodes have the image; 1 trying again (RegistryUnavailable); 1 image is to be resolved",
			"NodeFailures: 1 node is trying again (RegistryUnavailable)",
		}, {
			"a peer that waits for the mirror has no failure",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", fails(appV1, v1alpha1.ImagePulling, v1alpha1.ReasonNotOnMirror)),
			"False Distributing: 1 of 2 nodes have the image; 1 pulling", "",
		}, {
			"an image that the mirror did not have waits for its turn at the upstream",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", fails(appV1, v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror)).
				with(func(s *inputBuilder) { s.outcome.WithoutMirror = true }),
			"False Distributing: 1 of 2 nodes have the image; 1 trying again (NotOnMirror)",
			"NodeFailures: 1 node is trying again (NotOnMirror); the mirror served nothing, so nodes pull from the upstream registry, " +
				"one after the other: check that Spegel runs and that hosts.toml on the nodes names it",
		}, {
			"and has failed if there is no fallback to the upstream",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", fails(appV1, v1alpha1.ImageFailed, v1alpha1.ReasonNotOnMirror)).
				with(func(s *inputBuilder) { s.mirrorFallback = false }),
			"False NodesFailed: 1 of 2 nodes have the image; 1 failed (NotOnMirror); see status.failures",
			"NodeFailures: 1 node failed (NotOnMirror)",
		}, {
			"another source does not help against a full disk",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", fails(appV1, v1alpha1.ImageFailed, v1alpha1.ReasonInsufficientDisk)),
			"False NodesFailed: 1 of 2 nodes have the image; 1 failed (InsufficientDisk); see status.failures",
			"NodeFailures: 1 node failed (InsufficientDisk)",
		}, {
			"nodes that are not even sent to ask for a refused image will not get it either",
			prefetchOf(appV1).node("a", notFound).node("b").node("c").with(func(s *inputBuilder) { s.outcome.Refused = map[string][]string{appV1: {""}} }),
			"False NodesFailed: 0 of 3 nodes have the image; 3 failed (ImageNotFound); see status.failures",
			"NodeFailures: 3 nodes failed (ImageNotFound)",
		}, {
			"but nodes of another platform may: they are waited for, however many may fail",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", pulling(appV1, one)).node("c").with(allow(intstr.FromInt32(1))).
				with(func(s *inputBuilder) {
					s.nodes["a"].planNode.Platform, s.nodes["b"].planNode.Platform, s.nodes["c"].planNode.Platform = "linux/amd64", "linux/amd64", "linux/arm64"
					s.outcome.Refused = map[string][]string{appV1: {"linux/arm64"}}
				}),
			"False Distributing: 1 of 3 nodes have the image; 1 pulling; 1 failed",
			"NodeFailures: 1 node failed",
		}, {
			"an agent that does not answer is a failure of its node",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", pulling(appV1, one)).
				with(func(s *inputBuilder) { s.outcome.Silent = []string{"b"} }),
			"False NodesFailed: 1 of 2 nodes have the image; 1 failed (AgentNotRunning); see status.failures",
			"NodeFailures: 1 node failed (AgentNotRunning)",
		}, {
			"so is a container runtime that does not answer",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b", pulling(appV1, one)).with(allow(intstr.FromInt32(1))).
				with(func(s *inputBuilder) { s.nodes["b"].planNode.RuntimeDown = true }),
			"True FailuresTolerated: 1 of 2 nodes have the image; 1 failed (RuntimeUnavailable); spec.failureTolerance allows 1",
			"NodeFailures: 1 node failed (RuntimeUnavailable)",
		}, {
			"unless the node has all images",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).with(func(s *inputBuilder) { s.outcome.Silent = []string{"a"} }),
			"True AllNodesHoldImages: 1 of 1 node has the image", "",
		}, {
			"if fewer nodes match than replicas are asked for, Degraded says so",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).with(func(s *inputBuilder) { s.outcome.MissingReplicas = 1 }),
			"True AllNodesHoldImages: 1 of 1 node has the image",
			"TooFewNodes: spec.replicas asks for 1 node more than match; all that match are used",
		}, {
			"a node whose set is full of older images gets none of these",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).node("b").with(func(s *inputBuilder) { s.outcome.Full = []string{"b"} }),
			"False NodesFailed: 1 of 2 nodes have the image; 1 failed (TooManyImages); see status.failures",
			"NodeFailures: 1 node failed (TooManyImages)",
		}, {
			"secrets that are left out are named",
			prefetchOf(appV1).resolved(appV1, one).node("a", present(appV1, one)).with(func(s *inputBuilder) { s.outcome.LeftOutSecrets = []string{"k1", "k2"} }),
			"True AllNodesHoldImages: 1 of 1 node has the image",
			`PullSecretsLeftOut: spec.imagePullSecrets: 2 are not used everywhere, beginning with "k1": a node is given 64 for one image, ` +
				"and ImagePrefetches of the same image that come first by namespace and name have as many",
		}, {
			"users must see what the controller cannot write",
			prefetchOf(appV1).node("a").node("b").with(func(s *inputBuilder) { s.setErrors = map[string]error{"b": fmt.Errorf("write: %w", conflict)} }),
			`False ReconcileFailed: the NodeImageSet of node "b" could not be written: Forbidden; the controller tries again`, "",
		}, {
			"an error without a reason may differ from try to try, so it is not quoted",
			prefetchOf(appV1).node("a").with(func(s *inputBuilder) { s.setErrors = map[string]error{"a": errors.New("dial tcp 10.0.0.1:4711")} }),
			`False ReconcileFailed: the NodeImageSet of node "a" could not be written: the API server could not be reached; the controller tries again`, "",
		}, {
			"pull secrets are of no use if agents cannot get their credentials",
			prefetchOf(appV1).with(func(s *inputBuilder) {
				s.prefetch.object.Spec.ImagePullSecrets = []v1alpha1.SecretReference{{Name: "pull"}}
				s.prefetch = observePrefetch(s.prefetch.object, &referenceMemo{}, false, nil)
			}).node("a"),
			"False Unsupported: spec.imagePullSecrets is not served, for the controller runs without --credentials-bind-address, and nothing is pulled: " +
				"set that, or remove imagePullSecrets if the nodes themselves have credentials for the registry, or if it asks for none", "",
		}, {
			"an image that does not parse is named",
			prefetchOf(appV1, "UPPER").node("a"),
			`False InvalidSpec: spec.images: parse image reference "UPPER": invalid reference format: ` +
				"repository name (library/UPPER) must be lowercase: write it as in a Pod, such as ghcr.io/org/app:v2", "",
		},
	}
	for _, test := range tests {
		t.Run(test.because, func(t *testing.T) {
			status := test.of.summarize()
			ready := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionReady)
			if got := fmt.Sprintf("%s %s: %s", ready.Status, ready.Reason, ready.Message); got != test.ready {
				t.Errorf("Ready is\n%s, want\n%s", got, test.ready)
			}
			degraded := meta.FindStatusCondition(status.Conditions, v1alpha1.ConditionDegraded)
			want, got := "False AsExpected: nothing to report", fmt.Sprintf("%s %s: %s", degraded.Status, degraded.Reason, degraded.Message)
			if test.degraded != "" {
				want = "True " + test.degraded
			}
			if got != want {
				t.Errorf("Degraded is\n%s, want\n%s", got, want)
			}
			if status.ObservedGeneration != 3 || ready.ObservedGeneration != 3 || degraded.ObservedGeneration != 3 {
				t.Errorf("the status is not of generation 3: %+v", status)
			}
			test.of.prefetch.object.Status = status
			test.of.now = noon.Add(time.Hour)
			if later := test.of.summarize(); !cmp.Equal(status, later) {
				t.Errorf("the same input gives another status an hour later: %s", cmp.Diff(status, later))
			}
		})
	}
}

func TestImages(t *testing.T) {
	s := prefetchOf(appV1, webV1).resolved(appV1, one).
		node("a", upstream(present(appV1, one))).node("b", present(appV1, one)).node("c", pulling(appV1, one))
	s.prefetch.object.Status.Images = []v1alpha1.ImageStatus{
		{Name: webV1, Digest: two, SizeBytes: 7, ReadyNodes: 3, UpstreamPulls: 1},
		{Name: "ghcr.io/org/gone:v1", Digest: one},
	}
	want := []v1alpha1.ImageStatus{
		{Name: appV1, Digest: one, SizeBytes: 10, ReadyNodes: 2, UpstreamPulls: 1},
		// The last digest stays until the tag is resolved again. No node has the new one.
		{Name: webV1, Digest: two, SizeBytes: 7},
	}
	if diff := cmp.Diff(want, s.summarize().Images); diff != "" {
		t.Error(diff)
	}
}

func TestSizeIsThatOfTheDigest(t *testing.T) {
	s := prefetchOf(appV1).resolved(appV1, two).node("a", pulling(appV1, two))
	s.prefetch.object.Status.Images = []v1alpha1.ImageStatus{{Name: appV1, Digest: one, SizeBytes: 99}}
	if got := s.summarize().Images[0].SizeBytes; got != 0 {
		t.Errorf("the new digest has the old one's size, %d", got)
	}
	s.prefetch.object.Status.Images = []v1alpha1.ImageStatus{{Name: appV1, Digest: two, SizeBytes: 99}}
	if got := s.summarize().Images[0].SizeBytes; got != 99 {
		t.Errorf("the size was forgotten: %d", got)
	}
}

func TestFailuresAreBoundedAndSorted(t *testing.T) {
	s := prefetchOf(webV1, appV1)
	for i := range 20 {
		s.node(fmt.Sprintf("node-%02d", i),
			fails(appV1, v1alpha1.ImagePending, v1alpha1.ReasonNoProgress), fails(webV1, v1alpha1.ImagePending, v1alpha1.ReasonNoProgress))
	}
	final := fails(appV1, v1alpha1.ImageFailed, v1alpha1.ReasonPlatformNotProvided)
	final.Message = strings.Repeat("ü", 1024)
	s.node("node-99", final)
	got := s.summarize().Failures
	if len(got) != 10 {
		t.Fatalf("%d failures, want 10", len(got))
	}
	last := got[9]
	if last.Node != "node-99" || last.Reason != v1alpha1.ReasonPlatformNotProvided {
		t.Errorf("a retried failure takes the place of a final one: %+v", got)
	}
	if len(last.Message) > maxMessage || !utf8.ValidString(last.Message) {
		t.Errorf("the message is %d bytes, or cut within a character", len(last.Message))
	}
	for i, failure := range got[:9] {
		want := v1alpha1.NodeFailure{Node: fmt.Sprintf("node-%02d", i/2), Image: []string{appV1, webV1}[i%2], Reason: v1alpha1.ReasonNoProgress, Message: "because"}
		if failure != want {
			t.Errorf("failure %d is %+v, want %+v", i, failure, want)
		}
	}
}

func TestTransitionTimes(t *testing.T) {
	s := prefetchOf(appV1).resolved(appV1, one).node("a", pulling(appV1, one))
	first := s.summarize()
	s.prefetch.object.Status = first
	s.now = noon.Add(time.Minute)
	s.nodes["a"].planNode.Entries[appV1] = plan.Entry{
		Wanted: &v1alpha1.NodeImage{RegistryPolicy: v1alpha1.RegistryPolicyDefault},
		Status: ptr.To(upstream(fails(appV1, v1alpha1.ImageFailed, v1alpha1.ReasonNoProgress))),
	}
	second := s.summarize()
	if before, after := first.Conditions[0], second.Conditions[0]; before.Reason == after.Reason || !before.LastTransitionTime.Equal(&after.LastTransitionTime) {
		t.Errorf("Ready was %+v and is %+v: want another reason and the same transition time", before, after)
	}
	s.prefetch.object.Status = second
	s.now = noon.Add(time.Hour)
	s.nodes["a"].planNode.Entries[appV1] = plan.Entry{Wanted: &v1alpha1.NodeImage{}, Status: ptr.To(present(appV1, one))}
	if third := s.summarize().Conditions[0]; !third.LastTransitionTime.Time.Equal(s.now) {
		t.Errorf("Ready became True at %s, and says %s", s.now, third.LastTransitionTime)
	}
}

func TestUrgentStatuses(t *testing.T) {
	base := prefetchOf(appV1).resolved(appV1, one).node("a", pulling(appV1, one)).node("b", present(appV1, one)).summarize()
	tests := []struct {
		because string
		change  func(*v1alpha1.ImagePrefetchStatus)
		want    bool
	}{
		{"counts are put off", func(s *v1alpha1.ImagePrefetchStatus) {
			s.ReadyNodes, s.Images[0].ReadyNodes, s.Conditions[0].Message = 2, 2, "2 of 2"
		}, false},
		{"a new failure with the same reason is put off", func(s *v1alpha1.ImagePrefetchStatus) {
			s.Failures = []v1alpha1.NodeFailure{{Node: "a"}}
		}, false},
		{"a digest must outlive the node that resolved it", func(s *v1alpha1.ImagePrefetchStatus) { s.Images[0].Digest = two }, true},
		{"so must the refresh that it belongs to", func(s *v1alpha1.ImagePrefetchStatus) { s.Images[0].Refresh = "4" }, true},
		{"somebody waits for Ready", func(s *v1alpha1.ImagePrefetchStatus) { s.Conditions[0].Status = metav1.ConditionTrue }, true},
		{"somebody waits for the reason", func(s *v1alpha1.ImagePrefetchStatus) { s.Conditions[0].Reason = v1alpha1.ReasonNodesFailed }, true},
		{"the author waits until the spec is observed", func(s *v1alpha1.ImagePrefetchStatus) { s.ObservedGeneration = 4 }, true},
	}
	for _, test := range tests {
		t.Run(test.because, func(t *testing.T) {
			after := base.DeepCopy()
			test.change(after)
			if got := isUrgent(&base, after); got != test.want {
				t.Errorf("got %v", got)
			}
		})
	}
}
