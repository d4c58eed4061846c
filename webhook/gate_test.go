// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package webhook_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/hold"
)

// gated is a Deployment that waits for the ImagePrefetch "app".
func gated(namespace, name string) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{v1alpha1.PrefetchAnnotation: "app"}},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To[int32](1),
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "registry.example.com/app:v1"}}},
			},
		},
	}
}

// plain is one that waits for nothing.
func plain(namespace, name string) *appsv1.Deployment {
	d := gated(namespace, name)
	d.Annotations = nil
	return d
}

func setImage(image string) func(*appsv1.Deployment) {
	return func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image }
}

type warnings struct {
	mu   sync.Mutex
	into *[]string
}

func warningsTo(into *[]string) rest.WarningHandler { return &warnings{into: into} }

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*w.into = append(*w.into, text)
}

var _ = Describe("Gate webhook", func() {
	It("holds, says why, and does nothing on a dry run", func(ctx SpecContext) {
		var told []string
		config := as("tenant", "system:masters")
		config.WarningHandler = warningsTo(&told)
		tenant := clientFor(config)
		namespace := newNamespace(ctx)
		decided := func() float64 {
			return counted("sluice_gate_decisions_total", "Held")
		}
		before := decided()

		dry := gated(namespace, "app")
		Expect(tenant.Create(ctx, dry, client.DryRunAll)).To(Succeed())
		Expect(dry.Spec.Paused).To(BeTrue(), "a dry run shows what would be stored")
		Expect(decided()).To(Equal(before), "a dry run is not counted")
		Expect(api.Get(ctx, client.ObjectKeyFromObject(dry), dry)).To(MatchError(apierrors.IsNotFound, "is not stored"))

		d := gated(namespace, "app")
		Expect(tenant.Create(ctx, d)).To(Succeed())
		Expect(d.Spec.Paused).To(BeTrue())
		Expect(d.Labels).To(HaveKey(v1alpha1.HoldLabel))
		Expect(time.Parse(time.RFC3339, d.Annotations[v1alpha1.HeldAtAnnotation])).To(BeTemporally("~", time.Now(), time.Minute))
		Expect(told).To(HaveEach(ContainSubstring(`ImagePrefetch "app" does not exist`)))
		Expect(decided()).To(Equal(before + 1))
		Expect(d.ManagedFields).NotTo(ContainElement(HaveField("FieldsV1.Raw", ContainSubstring("f:paused"))), "nobody owns what we set")
	})

	It("rejects annotations that cannot be understood, and says what to write", func(ctx SpecContext) {
		d := gated(newNamespace(ctx), "app")
		d.Annotations[v1alpha1.HoldTimeoutAnnotation] = "10"
		Expect(api.Create(ctx, d)).To(And(Satisfy(apierrors.IsInvalid), MatchError(ContainSubstring(`metadata.annotations[sluice.dev/hold-timeout]: Invalid value: "10": write a duration`))))
	})

	It("holds what is created from an exported manifest, whatever that says was released", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		d := gated(namespace, "app")
		hash := hold.ImagesOf(&d.Spec.Template.Spec).Hash()
		d.Annotations[v1alpha1.ReleasedAnnotation] = hash
		Expect(api.Create(ctx, d)).To(Succeed())
		Expect(d.Labels).To(HaveKeyWithValue(v1alpha1.HoldLabel, hash))
		Expect(d.Annotations).NotTo(HaveKey(v1alpha1.ReleasedAnnotation))
		d.Spec.Paused = false
		Expect(api.Update(ctx, d)).To(Succeed())
		Expect(d.Spec.Paused).To(BeTrue(), "nothing was left that lets the next write through")
	})

	It("lets go by itself once the ImagePrefetch is Ready, at the next write", func(ctx SpecContext) {
		namespace := newNamespace(ctx)
		allow(ctx, namespace, "registry.example.com/app")
		d := gated(namespace, "app")
		Expect(api.Create(ctx, d)).To(Succeed())
		prefetch := prefetchOf(namespace, "app", "registry.example.com/app:v1")
		Expect(api.Create(ctx, prefetch)).To(Succeed())
		prefetch.Status = v1alpha1.ImagePrefetchStatus{
			ObservedGeneration: 1,
			Images:             []v1alpha1.ImageStatus{{Name: "registry.example.com/app:v1", Digest: "sha256:" + strings.Repeat("a", 64)}},
			Conditions: []metav1.Condition{{
				Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonAllNodesHoldImages,
				ObservedGeneration: 1, LastTransitionTime: metav1.Now(),
			}},
		}
		Expect(api.Status().Update(ctx, prefetch)).To(Succeed())
		Eventually(func(g Gomega) {
			g.Expect(api.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
			d.Annotations[v1alpha1.HoldTimeoutAnnotation] = fmt.Sprintf("%dns", time.Now().UnixNano())
			g.Expect(api.Update(ctx, d)).To(Succeed())
			g.Expect(d.Spec.Paused).To(BeFalse())
			g.Expect(d.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
		}).Should(Succeed())
	})

	It("copes with the largest Deployment that is stored", func(ctx SpecContext) {
		d := gated(newNamespace(ctx), "app")
		for i := range 500 {
			d.Spec.Template.Spec.Containers[0].Env = append(d.Spec.Template.Spec.Containers[0].Env,
				corev1.EnvVar{Name: fmt.Sprintf("VARIABLE_%d", i), Value: strings.Repeat("x", 2000)})
		}
		Expect(api.Create(ctx, d)).To(Succeed())
		d.Spec.Template.Spec.Containers[0].Env[499].Value = "y"
		Expect(api.Update(ctx, d)).To(Succeed())
		Expect(d.Spec.Paused).To(BeTrue())
	})

	Context("when it does not answer", Serial, func() {
		var namespace string
		BeforeEach(func(ctx SpecContext) {
			namespace = newNamespace(ctx)
			Expect(api.Create(ctx, gated(namespace, "held"))).To(Succeed())
			running := gated(namespace, "running")
			running.Annotations[v1alpha1.GateAnnotation] = v1alpha1.GateSkip
			Expect(api.Create(ctx, running)).To(Succeed())
			delete(running.Annotations, v1alpha1.GateAnnotation)
			Expect(api.Update(ctx, running)).To(Succeed())
			Expect(running.Spec.Paused).To(BeFalse())
			Expect(api.Create(ctx, plain(namespace, "plain"))).To(Succeed())
			stopServer()
			DeferCleanup(serve)
		})
		edit := func(ctx context.Context, name string, change func(*appsv1.Deployment)) error {
			GinkgoHelper()
			var d appsv1.Deployment
			Expect(api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &d)).To(Succeed())
			change(&d)
			return api.Update(ctx, &d)
		}
		annotate := func(key, value string) func(*appsv1.Deployment) {
			return func(d *appsv1.Deployment) { metav1.SetMetaDataAnnotation(&d.ObjectMeta, key, value) }
		}

		It("is not missed by any other write, nor by the ways out", func(ctx SpecContext) {
			Expect(api.Create(ctx, plain(namespace, "another"))).To(Succeed())
			Expect(edit(ctx, "plain", setImage("registry.example.com/app:v2"))).To(Succeed())
			Expect(edit(ctx, "plain", func(d *appsv1.Deployment) { d.Spec.Paused = true })).To(Succeed())
			for _, name := range []string{"running", "held"} {
				Expect(edit(ctx, name, func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](3) })).To(Succeed())
				Expect(edit(ctx, name, func(d *appsv1.Deployment) { metav1.SetMetaDataLabel(&d.ObjectMeta, "team", "a") })).To(Succeed())
				Expect(edit(ctx, name, annotate("example.com/note", "x"))).To(Succeed())
				Expect(edit(ctx, name, annotate(corev1.LastAppliedConfigAnnotation, `{"spec":{"replicas":3}}`))).To(Succeed())
				Expect(edit(ctx, name, func(d *appsv1.Deployment) { d.Spec.Strategy.RollingUpdate.MaxSurge = nil })).To(Succeed())
				Expect(edit(ctx, name, func(d *appsv1.Deployment) {
					pod := &d.Spec.Template
					pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", Value: "2"}}
					pod.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
					metav1.SetMetaDataAnnotation(&pod.ObjectMeta, "kubectl.kubernetes.io/restartedAt", "now")
				})).To(Succeed())
				var d appsv1.Deployment
				Expect(api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &d)).To(Succeed())
				Expect(api.SubResource("scale").Update(ctx, &d, client.WithSubResourceBody(&autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 5}}))).To(Succeed())
				Expect(api.Get(ctx, client.ObjectKeyFromObject(&d), &d)).To(Succeed())
				d.Status.ObservedGeneration = d.Generation
				Expect(api.Status().Update(ctx, &d)).To(Succeed())
			}
			p := policyOf("written-meanwhile", v1alpha1.PrefetchPolicySpec{})
			Expect(api.Create(ctx, p)).To(Succeed())
			Expect(api.Delete(ctx, p)).To(Succeed())
			By("pausing what is not held")
			Expect(edit(ctx, "running", func(d *appsv1.Deployment) { d.Spec.Paused = true })).To(Succeed())
			By("opting out, in all ways")
			Expect(edit(ctx, "held", annotate(v1alpha1.GateAnnotation, v1alpha1.GateSkip))).To(Succeed())
			Expect(edit(ctx, "held", func(d *appsv1.Deployment) { d.Spec.Paused = false })).To(Succeed())
			Expect(edit(ctx, "running", func(d *appsv1.Deployment) {
				annotate(v1alpha1.GateAnnotation, v1alpha1.GateSkip)(d)
				setImage("registry.example.com/app:v2")(d)
			})).To(Succeed())
			Expect(api.Delete(ctx, plain(namespace, "held"))).To(Succeed())
		})

		It("is asked about a gated change of images, pause or Sluice's keys, which is rejected", func(ctx SpecContext) {
			rejected := And(Satisfy(apierrors.IsInternalError), MatchError(ContainSubstring(`failed calling webhook "gate.sluice.dev"`)))
			Expect(api.Create(ctx, gated(namespace, "new"))).To(rejected)
			for reason, change := range map[string]func(*corev1.PodSpec){
				"another image": func(s *corev1.PodSpec) { s.Containers[0].Image = "registry.example.com/app:v2" },
				"another container": func(s *corev1.PodSpec) {
					s.Containers = append(s.Containers, corev1.Container{Name: "side", Image: "registry.example.com/side:v1"})
				},
				"another init container": func(s *corev1.PodSpec) {
					s.InitContainers = []corev1.Container{{Name: "init", Image: "registry.example.com/init:v1"}}
				},
				"another image volume": func(s *corev1.PodSpec) {
					s.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "registry.example.com/data:v1"}}}}
				},
			} {
				Expect(edit(ctx, "running", func(d *appsv1.Deployment) { change(&d.Spec.Template.Spec) })).To(rejected, reason)
			}
			Expect(edit(ctx, "running", func(d *appsv1.Deployment) { d.Spec.Paused = true })).To(Succeed())
			Expect(edit(ctx, "running", func(d *appsv1.Deployment) { d.Spec.Paused = false })).To(rejected)
			Expect(edit(ctx, "running", func(d *appsv1.Deployment) { metav1.SetMetaDataLabel(&d.ObjectMeta, v1alpha1.HoldLabel, "x") })).To(rejected)
			Expect(edit(ctx, "plain", func(d *appsv1.Deployment) {
				annotate(v1alpha1.PrefetchAnnotation, "app")(d)
				setImage("registry.example.com/app:v2")(d)
			})).To(rejected)
			Expect(edit(ctx, "held", func(d *appsv1.Deployment) { d.Spec.Paused = false })).To(rejected)
			Expect(edit(ctx, "held", func(d *appsv1.Deployment) { delete(d.Labels, v1alpha1.HoldLabel) })).To(rejected)
			for _, key := range []string{v1alpha1.HeldAtAnnotation, v1alpha1.ReleasedAnnotation, v1alpha1.HoldTimeoutAnnotation, v1alpha1.OnTimeoutAnnotation} {
				Expect(edit(ctx, "held", annotate(key, "x"))).To(rejected, key)
			}
			Expect(edit(ctx, "held", func(d *appsv1.Deployment) { delete(d.Annotations, v1alpha1.PrefetchAnnotation) })).To(rejected)
			Expect(edit(ctx, "held", annotate(corev1.LastAppliedConfigAnnotation, `{"spec":{"paused":true}}`))).To(rejected)
			var d appsv1.Deployment
			Expect(api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "held"}, &d)).To(Succeed())
			pause := []byte(`{"apiVersion":"apps/v1","kind":"Deployment","spec":{"paused":true}}`)
			Expect(api.Patch(ctx, &d, client.RawPatch(types.ApplyPatchType, pause), client.FieldOwner("team"))).To(rejected)
		})

		It("is asked about a pause of what bears the label of a hold: it would be taken for one", func(ctx SpecContext) {
			var d appsv1.Deployment
			Expect(api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "held"}, &d)).To(Succeed())
			resume := []byte(`[{"op":"remove","path":"/spec/paused"}]`)
			Expect(controller.Patch(ctx, &d, client.RawPatch(types.JSONPatchType, resume))).To(Succeed())
			Expect(edit(ctx, "held", func(d *appsv1.Deployment) { d.Spec.Paused = true })).To(MatchError(ContainSubstring("failed calling webhook")))
		})

		It("is not asked about releases", func(ctx SpecContext) {
			var d appsv1.Deployment
			Expect(api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: "held"}, &d)).To(Succeed())
			release := []byte(`[{"op":"remove","path":"/spec/paused"},{"op":"remove","path":"/metadata/labels/sluice.dev~1hold"}]`)
			Expect(controller.Patch(ctx, &d, client.RawPatch(types.JSONPatchType, release))).To(Succeed())
			Expect(d.Spec.Paused).To(BeFalse())
		})

		It("knows the controller by its name and its rights, in whatever namespace that is", func(ctx SpecContext) {
			account := func(namespace string) rbacv1.Subject {
				return rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: "sluice-controller"}
			}
			role := func(name string) rbacv1.RoleRef {
				return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}
			}
			elsewhere := &rbacv1.ClusterRoleBinding{
				ObjectMeta: metav1.ObjectMeta{Name: "elsewhere"}, RoleRef: role("sluice-controller"), Subjects: []rbacv1.Subject{account("images")},
			}
			Expect(api.Create(ctx, elsewhere)).To(Succeed())
			DeferCleanup(func(ctx SpecContext) { Expect(api.Delete(ctx, elsewhere)).To(Succeed()) })
			Expect(api.Create(ctx, &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "impostor"}, RoleRef: role("system:aggregate-to-edit"), Subjects: []rbacv1.Subject{account(namespace)},
			})).To(Succeed())
			release := client.RawPatch(types.JSONPatchType, []byte(`[{"op":"remove","path":"/spec/paused"},{"op":"remove","path":"/metadata/labels/sluice.dev~1hold"}]`))
			releasedBy := func(user string) error { return clientFor(as(user)).Patch(ctx, plain(namespace, "held"), release) }

			Eventually(releasedBy).WithArguments("system:serviceaccount:" + namespace + ":sluice-controller").
				Should(MatchError(ContainSubstring("failed calling webhook")))
			Eventually(releasedBy).WithArguments("system:serviceaccount:images:sluice-controller").Should(Succeed())
		})
	})
})
