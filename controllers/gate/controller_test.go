// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package gate_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/gate"
	"github.com/sluice-dev/sluice/internal/hold"
)

const image = "registry.example.com/app:v1"

var _ = Describe("Gate controller", func() {
	var (
		held     *appsv1.Deployment
		recorded chan string
		registry *prometheus.Registry
		// cached is what the cache shows of the Deployment in place of what is stored.
		cached     *appsv1.Deployment
		controller *gate.Reconciler
	)
	BeforeEach(func(ctx SpecContext) {
		held = createHeld(ctx, "app")
		createReady(ctx)
		recorded, cached, registry = make(chan string, 100), nil, prometheus.NewRegistry()
		metrics, err := gate.NewMetrics(registry)
		Expect(err).NotTo(HaveOccurred())
		reader := interceptor.NewClient(api, interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, into client.Object, opts ...client.GetOption) error {
				if d, ok := into.(*appsv1.Deployment); ok && cached != nil {
					cached.DeepCopyInto(d)
					return nil
				}
				return c.Get(ctx, key, into, opts...)
			},
		})
		controller = &gate.Reconciler{
			Client: reader, APIReader: api, Cluster: &gate.ClusterReader{Nodes: &gate.Nodes{Clock: clock.RealClock{}}, Prefetches: reader},
			Recorder: &events.FakeRecorder{Events: recorded}, Clock: clock.RealClock{}, Metrics: metrics,
		}
	})
	reconciled := func(ctx context.Context) (reconcile.Result, error) {
		return controller.Reconcile(ctx, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(held)})
	}

	It("backs off when the API server rejects a release, and says what to do", func(ctx SpecContext) {
		policy := denyResuming(ctx)
		for range 2 {
			result, err := reconciled(ctx)
			Expect(err).To(And(Satisfy(apierrors.IsInvalid), MatchError(ContainSubstring("nobody resumes"))), "returned, so that the work queue retries it at growing intervals")
			Expect(result).To(BeZero())
		}
		Expect(recorded).To(Receive(And(HavePrefix("Warning "+hold.ReasonReleaseRejected), ContainSubstring("nobody resumes"),
			ContainSubstring("exempt Sluice's controller"), ContainSubstring("sluice.dev/gate=skip"))))
		Expect(recorded).NotTo(Receive(), "an equal event is recorded once")

		By("releasing when nothing rejects it any more")
		Expect(api.Delete(ctx, policy)).To(Succeed())
		Eventually(func() error { _, err := reconciled(ctx); return err }).Should(Succeed())
		Expect(api.Get(ctx, client.ObjectKeyFromObject(held), held)).To(Succeed())
		Expect(held.Spec.Paused).To(BeFalse())
		Expect(recorded).To(Receive(HavePrefix("Normal " + hold.ReasonReleased)))
	})

	It("says so when the release fails for any other reason, and again", func(ctx SpecContext) {
		rejects := interceptor.NewClient(api, interceptor.Funcs{
			Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
				return apierrors.NewInternalError(errors.New("failed calling webhook: connection refused"))
			},
		})
		controller.Client = rejects
		_, err := reconciled(ctx)
		Expect(err).To(Satisfy(apierrors.IsInternalError))
		Expect(recorded).NotTo(Receive(), "a webhook may be restarting")
		_, err = reconciled(ctx)
		Expect(err).To(Satisfy(apierrors.IsInternalError))
		Expect(recorded).To(Receive(And(HavePrefix("Warning "+hold.ReasonReleaseRejected), ContainSubstring("connection refused"))))
		_, err = reconciled(ctx)
		Expect(err).To(Satisfy(apierrors.IsInternalError))
		Expect(recorded).NotTo(Receive(), "an equal event is recorded once")
	})

	DescribeTable("says so when a webhook denies the release with a code that means something else elsewhere",
		func(ctx SpecContext, code int32) {
			controller.Client = interceptor.NewClient(api, interceptor.Funcs{
				Patch: func(context.Context, client.WithWatch, client.Object, client.Patch, ...client.PatchOption) error {
					return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Message: "a webhook denied the request"}}
				},
			})
			for range 2 {
				result, err := reconciled(ctx)
				Expect(err).To(MatchError(ContainSubstring("denied the request")))
				Expect(result).To(BeZero())
			}
			Expect(recorded).To(Receive(And(HavePrefix("Warning "+hold.ReasonReleaseRejected), ContainSubstring("denied the request"))))
		},
		Entry("conflict", int32(http.StatusConflict)),
		Entry("not found", int32(http.StatusNotFound)),
	)

	It("keeps a hold whose label goes before it is first looked at", func(ctx SpecContext) {
		delete(held.Labels, v1alpha1.HoldLabel)
		Expect(api.Update(ctx, held)).To(Succeed())
		Expect(reconciled(ctx)).To(BeZero())
		Expect(api.Get(ctx, client.ObjectKeyFromObject(held), held)).To(Succeed())
		Expect(held.Labels).To(HaveKey(v1alpha1.HoldLabel))
	})

	It("finds the holds that lost their label, however often it cannot look, and the label of one is rejected", func(ctx SpecContext) {
		other := createHeld(ctx, "other")
		for _, d := range []*appsv1.Deployment{held, other} {
			delete(d.Labels, v1alpha1.HoldLabel)
			Expect(api.Update(ctx, d)).To(Succeed())
		}
		rejections := 0
		controller.Client = interceptor.NewClient(api, interceptor.Funcs{
			Patch: func(ctx context.Context, c client.WithWatch, d client.Object, patch client.Patch, opts ...client.PatchOption) error {
				if d.GetNamespace() == held.Namespace && d.GetName() == held.Name && rejections < 3 {
					rejections++
					return apierrors.NewForbidden(schema.GroupResource{}, d.GetName(), errors.New("a policy denies it"))
				}
				return c.Patch(ctx, d, patch, opts...)
			},
		})
		unreadable := 2
		controller.APIReader = interceptor.NewClient(api, interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
				if unreadable > 0 {
					unreadable--
					return errors.New("the API server is away")
				}
				return c.List(ctx, list, opts...)
			},
		})
		Expect(gate.FindOrphans(controller, ctx)).To(Succeed())
		Expect(rejections).To(Equal(3))
		for _, d := range []*appsv1.Deployment{held, other} {
			Expect(api.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
			Expect(d.Labels).To(HaveKey(v1alpha1.HoldLabel))
		}
	})

	It("counts no end of a hold of which it knows nothing but that it was there", func(ctx SpecContext) {
		// As if the cache could not be read just then, for the ImagePrefetches that may know the tag.
		Expect(api.DeleteAllOf(ctx, &v1alpha1.ImagePrefetch{}, client.InNamespace(held.Namespace))).To(Succeed())
		controller.Cluster.Prefetches = interceptor.NewClient(api, interceptor.Funcs{
			List: func(context.Context, client.WithWatch, client.ObjectList, ...client.ListOption) error {
				return errors.New("the cache is stopped")
			},
		})
		_, err := reconciled(ctx)
		Expect(err).To(MatchError(ContainSubstring("the cache is stopped")))
		Expect(api.Delete(ctx, held)).To(Succeed())
		Expect(reconciled(ctx)).To(BeZero())
		Expect(metric(registry, "sluice_gate_hold_duration_seconds", string(hold.EndElsewhere))).To(BeZero())
		Expect(metric(registry, "sluice_gate_holds_active")).To(BeZero())
	})

	It("knows every node as soon as it says anything of nodes", func(ctx SpecContext) {
		for i := range 50 {
			create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i)}})
		}
		cluster, _, err := reads(ctx).Read(ctx, held, nil)
		Expect(err).NotTo(HaveOccurred())
		Expect(cluster.Nodes).To(HaveLen(50))
	})

	It("asks the ImagePrefetches of the namespace that list a tag, however it is written, and no others", func(ctx SpecContext) {
		lists := func(namespace, name string, images ...v1alpha1.ImageReference) {
			create(ctx, &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1alpha1.ImagePrefetchSpec{Images: images}})
		}
		lists("kube-system", "other", "nginx")
		lists("default", "short", "nginx", "busybox")
		lists("default", "long", "docker.io/library/nginx:latest")
		lists("default", "tag", "nginx:1")
		named := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Name: "named"}, Spec: v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{image}}}
		reader := reads(ctx)
		read := func(images ...string) []string {
			held.Spec.Template.Spec.Containers = nil
			for _, image := range images {
				held.Spec.Template.Spec.Containers = append(held.Spec.Template.Spec.Containers, corev1.Container{Image: image})
			}
			cluster, _, err := reader.Read(ctx, held, named)
			Expect(err).NotTo(HaveOccurred())
			var names []string
			for _, prefetch := range cluster.Prefetches {
				names = append(names, prefetch.Name)
			}
			return names
		}
		Expect(read(image)).To(ConsistOf("named"), "it lists the tag itself")
		Expect(read("docker.io/nginx:latest")).To(ConsistOf("named", "short", "long"))
		Expect(read("nginx@sha256:" + strings.Repeat("a", 64))).To(ConsistOf("named"))
		Expect(read("alpine")).To(ConsistOf("named"))
	})

	It("counts a release once, however long the cache shows the hold", func(ctx SpecContext) {
		cached = held.DeepCopy()
		Expect(reconciled(ctx)).To(BeZero())
		Expect(recorded).To(Receive(HavePrefix("Normal " + hold.ReasonReleased)))
		By("looking at what the cache still shows")
		Expect(reconciled(ctx)).To(BeZero(), "there is nothing to patch")
		cached = &appsv1.Deployment{} // as if gone from the cache, which has held Deployments only
		Expect(reconciled(ctx)).To(BeZero())
		Expect(metric(registry, "sluice_gate_hold_duration_seconds", string(hold.EndReady))).To(Equal(1.0))
		Expect(metric(registry, "sluice_gate_hold_duration_seconds", string(hold.EndElsewhere))).To(BeZero())
		Expect(metric(registry, "sluice_gate_holds_active")).To(BeZero())
		Expect(recorded).NotTo(Receive())

		By("counting the next hold of the same Deployment")
		Expect(api.Get(ctx, client.ObjectKeyFromObject(held), held)).To(Succeed())
		held.Spec.Paused = true
		metav1.SetMetaDataLabel(&held.ObjectMeta, v1alpha1.HoldLabel, "0123456789abcdef")
		delete(held.Annotations, v1alpha1.ReleasedAnnotation)
		Expect(api.Update(ctx, held)).To(Succeed())
		cached = held.DeepCopy()
		Expect(reconciled(ctx)).To(BeZero())
		Expect(metric(registry, "sluice_gate_hold_duration_seconds", string(hold.EndReady))).To(Equal(2.0))
	})

	It("looks again, and records nothing, when the Deployment has changed", func(ctx SpecContext) {
		cached = held.DeepCopy()
		held.Labels[v1alpha1.HoldLabel] = "0123456789abcdef"
		Expect(api.Update(ctx, held)).To(Succeed())
		result, err := reconciled(ctx)
		Expect(err).NotTo(HaveOccurred())
		Expect(result.RequeueAfter).To(BeNumerically(">", 0))
		Expect(recorded).NotTo(Receive())
	})
})

// metric is the value of a gauge, or the count of a histogram, with a label value if one is given.
func metric(registry *prometheus.Registry, name string, value ...string) float64 {
	GinkgoHelper()
	families, err := registry.Gather()
	Expect(err).NotTo(HaveOccurred())
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && (len(value) == 0 || m.GetLabel()[0].GetValue() == value[0]) {
				return m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
	}
	Fail("no metric " + name)
	return 0
}

// createHeld stores a Deployment as the webhook leaves it, and deletes it at the end of the spec.
func createHeld(ctx context.Context, name string) *appsv1.Deployment {
	GinkgoHelper()
	labels := map[string]string{"app": "app"}
	pod := corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: image}}}
	d := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name,
			Labels: map[string]string{v1alpha1.HoldLabel: hold.ImagesOf(&pod).Hash()},
			Annotations: map[string]string{v1alpha1.PrefetchAnnotation: "app",
				v1alpha1.HeldAtAnnotation: time.Now().UTC().Format(time.RFC3339)}},
		Spec: appsv1.DeploymentSpec{
			Paused:   true,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod},
		},
	}
	create(ctx, d)
	return d
}

// createReady stores an ImagePrefetch that is Ready with the image.
func createReady(ctx context.Context) {
	GinkgoHelper()
	p := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "app"},
		Spec: v1alpha1.ImagePrefetchSpec{Images: []v1alpha1.ImageReference{image}}}
	create(ctx, p)
	p.Status = v1alpha1.ImagePrefetchStatus{ObservedGeneration: p.Generation, Images: []v1alpha1.ImageStatus{{Name: image, Digest: "sha256:" + strings.Repeat("a", 64)}}, Conditions: []metav1.Condition{{
		Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAllNodesHoldImages,
		ObservedGeneration: p.Generation, LastTransitionTime: metav1.Now()}}}
	Expect(api.Status().Update(ctx, p)).To(Succeed())
}

func create(ctx context.Context, objects ...client.Object) {
	GinkgoHelper()
	for _, object := range objects {
		Expect(api.Create(ctx, object)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(client.IgnoreNotFound(api.Delete(ctx, object))).To(Succeed()) })
	}
}

// reads follows what is stored, until the spec ends.
func reads(ctx context.Context) *gate.ClusterReader {
	GinkgoHelper()
	followed, err := cache.New(server.Config, cache.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	nodes := &gate.Nodes{Clock: clock.RealClock{}, AgentTimeout: time.Minute}
	Expect(nodes.Watch(ctx, followed)).To(Succeed())
	Expect(gate.AddIndexes(ctx, followed)).To(Succeed())
	running, stop := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- followed.Start(running) }()
	DeferCleanup(func() {
		stop()
		Eventually(stopped).Should(Receive(Succeed()))
	})
	return &gate.ClusterReader{Nodes: nodes, Prefetches: followed}
}

// denyResuming installs an admission policy, as an administrator might, and waits until the API
// server applies it.
func denyResuming(ctx context.Context) client.Object {
	GinkgoHelper()
	rule := admissionregistrationv1.RuleWithOperations{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Update},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
	}
	meta := metav1.ObjectMeta{Name: "freeze"}
	policy := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: meta, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionregistrationv1.MatchResources{
			ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: rule}},
		},
		Validations: []admissionregistrationv1.Validation{{
			Expression: "has(object.spec.paused) && object.spec.paused == true", Message: "nobody resumes on a Friday",
		}},
	}}
	binding := &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: meta, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: meta.Name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
	}}
	create(ctx, policy, binding)
	Eventually(func() error {
		var d appsv1.Deployment
		Expect(api.Get(ctx, client.ObjectKey{Namespace: "default", Name: "app"}, &d)).To(Succeed())
		d.Spec.Paused = false
		return api.Update(ctx, &d, client.DryRunAll)
	}).Should(MatchError(ContainSubstring("nobody resumes")))
	return policy
}
