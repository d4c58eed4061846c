// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"context"
	"fmt"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
)

var _ = Describe("The schema of ImagePrefetch", func() {
	// try reports whether the API server accepts a spec, in a dry run.
	try := func(ctx context.Context, change func(*v1alpha1.ImagePrefetchSpec)) error {
		prefetch := &v1alpha1.ImagePrefetch{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "app"},
			Spec:       v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{app}},
		}
		change(&prefetch.Spec)
		return api.Create(ctx, prefetch, client.DryRunAll)
	}

	DescribeTable("rejects what cannot be meant, and says what to write instead",
		func(ctx SpecContext, want string, change func(*v1alpha1.ImagePrefetchSpec)) {
			Expect(try(ctx, change)).To(MatchError(ContainSubstring(want)))
		},
		Entry("an image that does not parse", "write REGISTRY/REPOSITORY:TAG",
			func(s *v1alpha1.ImagePrefetchSpec) {
				s.Images = []v1alpha1.ImageReference{"https://ghcr.io/org/app"}
			}),
		Entry("an image listed twice", "remove the duplicate",
			func(s *v1alpha1.ImagePrefetchSpec) { s.Images = []v1alpha1.ImageReference{app, app} }),
		Entry("no image", "should have at least 1 items",
			func(s *v1alpha1.ImagePrefetchSpec) { s.Images = []v1alpha1.ImageReference{} }),
		Entry("101 images", "must have at most 100 items",
			func(s *v1alpha1.ImagePrefetchSpec) {
				s.Images = nil
				for i := range 101 {
					s.Images = append(s.Images, v1alpha1.ImageReference(fmt.Sprintf("app:%d", i)))
				}
			}),
		Entry("no replicas", "leave it out to prefetch to every matching node",
			func(s *v1alpha1.ImagePrefetchSpec) { s.Replicas = ptr.To[int32](0) }),
		Entry("negative replicas", "replicas must be 1 or more",
			func(s *v1alpha1.ImagePrefetchSpec) { s.Replicas = ptr.To[int32](-1) }),
		Entry("a negative failure tolerance", "a number of nodes such as 2",
			func(s *v1alpha1.ImagePrefetchSpec) { s.FailureTolerance = ptr.To(intstr.FromInt32(-1)) }),
		Entry("a failure tolerance of more than all nodes", `a percentage in quotes such as "10%"`,
			func(s *v1alpha1.ImagePrefetchSpec) { s.FailureTolerance = ptr.To(intstr.FromString("101%")) }),
		Entry("a failure tolerance in words", `a percentage in quotes such as "10%"`,
			func(s *v1alpha1.ImagePrefetchSpec) { s.FailureTolerance = ptr.To(intstr.FromString("some")) }),
		Entry("a negative retry limit", "between 0 and 100",
			func(s *v1alpha1.ImagePrefetchSpec) { s.ImageDownloadRetryLimit = ptr.To[int32](-1) }),
		Entry("a service account with its namespace", "write one of this namespace, such as robot",
			func(s *v1alpha1.ImagePrefetchSpec) { s.ServiceAccountName = "shop/robot" }),
		Entry("an unknown retention", `supported values: "Pinned", "BestEffort"`,
			func(s *v1alpha1.ImagePrefetchSpec) { s.Retention = "Forever" }),
	)

	It("admits 100 images and fills in the defaults", func(ctx SpecContext) {
		prefetch := createPrefetch(ctx, "app", func(p *v1alpha1.ImagePrefetch) {
			p.Spec.Images = nil
			for i := range 100 {
				p.Spec.Images = append(p.Spec.Images, v1alpha1.ImageReference(fmt.Sprintf("app:%d", i)))
			}
		})
		Expect(prefetch.Spec.ImageDownloadRetryLimit).To(HaveValue(BeEquivalentTo(3)))
		Expect(prefetch.Spec.FailureTolerance).To(HaveValue(Equal(intstr.FromInt32(0))))
		Expect(prefetch.Spec.Retention).To(Equal(v1alpha1.RetentionPinned))
		Expect(prefetch.Spec.Replicas).To(BeNil())
	})

	It("admits the failure tolerances that the documentation shows", func(ctx SpecContext) {
		for _, tolerance := range []intstr.IntOrString{intstr.FromInt32(0), intstr.FromInt32(2), intstr.FromString("10%"), intstr.FromString("100%")} {
			Expect(try(ctx, func(s *v1alpha1.ImagePrefetchSpec) { s.FailureTolerance = &tolerance })).To(Succeed())
		}
	})

	sha256 := strings.Repeat("0123456789abcdef", 4)
	sha512 := sha256 + sha256
	for _, reference := range []string{
		// What Pods name.
		"nginx", "nginx:1.29", "library/nginx", "docker.io/nginx", "ghcr.io/org/app:v2", "localhost/app", "localhost:5000/app",
		"registry:5000/app", "registry:5000/app:v1", "REGISTRY.example.com/app", "10.0.0.1:5000/app", "[fd00::1]:5000/app", "[fd00::1]/app",
		"a.b/c", "a_b/c", "a__b", "a-b", "a--b", "a.b", "ab/cd_ef/gh", "app:V1.0_x-y", "app:_x",
		"app@sha256:" + sha256, "app:v1@sha256:" + sha256, "registry:5000/app@sha256:" + sha256, "app@sha512:" + sha512, "app@sha384:" + sha256 + sha256[:32],
		// What they cannot.
		"", " ", "nginx ", " nginx", "https://ghcr.io/org/app", "ghcr.io/Org/app", "Nginx", "nginx:", ":v1", "nginx:v1:v2", "nginx:-x", "nginx:.x",
		"nginx@", "nginx@sha256", "nginx@sha256:abc", "nginx@sha256:" + strings.ToUpper(sha256), "nginx@sha512:" + sha256, "nginx@sha384:" + sha256,
		"nginx@md5:" + sha256[:32], "app@sha256:" + sha256 + ":v1", "/app", "app/", "a//b", "ghcr.io/", "-a/b", "a-/b", "a.b-/c", "a/-b", "a/b-",
		"a/_b", "a/b_", "a..b", "a___b", "a._b", "registry:port/app", "registry:/app", "registry:5000", "[fd00::1/app", "[fd00::1%eth0]/app", "[]/app",
		"app:" + strings.Repeat("v", 128), "app:" + strings.Repeat("v", 129), "nginx\n", "ngınx", "nginx:v1\x00",
		// A name that could be the ID of an image, and others that only look like one.
		sha256, "library/" + sha256, sha256 + ":v1", "index.docker.io/nginx", "docker.io/library/nginx", "docker.io/a/b/c",
		// Long ones. The controller, and not the schema, rejects a path of more than 255 characters.
		strings.Repeat("a", 247), "registry.example.com:5000/" + strings.Repeat("a", 255),
	} {
		It(fmt.Sprintf("agrees with imageref about %.60q (%d bytes)", reference, len(reference)), func(ctx SpecContext) {
			_, unparseable := imageref.Parse(reference)
			err := try(ctx, func(s *v1alpha1.ImagePrefetchSpec) {
				s.Images = []v1alpha1.ImageReference{v1alpha1.ImageReference(reference)}
			})
			if unparseable == nil {
				Expect(err).NotTo(HaveOccurred())
			} else {
				Expect(err).To(HaveOccurred(), "imageref says: %v", unparseable)
			}
		})
	}
})

var _ = Describe("The schema of NodeImageSet", func() {
	It("lets the object name no other node than it is named after", func(ctx SpecContext) {
		set := &v1alpha1.NodeImageSet{
			ObjectMeta: metav1.ObjectMeta{Name: "one"},
			Spec:       v1alpha1.NodeImageSetSpec{NodeName: "other"},
		}
		Expect(api.Create(ctx, set)).To(MatchError(ContainSubstring("set metadata.name to spec.nodeName")))
	})
})

var _ = Describe("The samples", func() {
	It("are admitted", func(ctx SpecContext) {
		for _, object := range read("samples") {
			Expect(api.Create(ctx, object, client.DryRunAll)).To(Succeed(), object.GetName())
		}
	})
})

var _ = Describe("The roles", func() {
	It("let an agent do nothing but watch NodeImageSets and patch their statuses", func() {
		for _, object := range read("rbac") {
			if object.GetKind() == "ClusterRole" && object.GetName() == "sluice-agent" {
				rules, _, err := unstructured.NestedSlice(object.Object, "rules")
				Expect(err).NotTo(HaveOccurred())
				Expect(fmt.Sprint(rules)).To(Equal("[" +
					"map[apiGroups:[sluice.dev] resources:[nodeimagesets] verbs:[list watch]] " +
					"map[apiGroups:[sluice.dev] resources:[nodeimagesets/status] verbs:[patch]]]"))
				return
			}
		}
		Fail("no such role")
	})
})
