// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/install"
	"github.com/sluice-dev/sluice/test/upstream"
)

// policies let the default namespace prefetch from one corner of the registry.
const policies = `
image: {pullSecrets: [{name: pull}]}
policies:
  team:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}
    allowedRepositories: [registry.sluice.test/team/**]
`

// The life of an installation, from the first day to the last. Each step finds what
// the one before has left.
var _ = Describe("An installation", Ordered, func() {
	var values, previous string // files, folders
	var back time.Time          // when it was installed again
	const selfManaged = "--set=certificate.source=SelfManaged"

	BeforeAll(func(ctx SpecContext) {
		Expect(site.InstallCertManager(ctx)).To(Succeed())
		values = filepath.Join(GinkgoT().TempDir(), "values.yaml")
		Expect(os.WriteFile(values, []byte(policies), 0o600)).To(Succeed())
		previous = previousChart()
	})
	upgrade := func(ctx context.Context, args ...string) string {
		GinkgoHelper()
		out, err := site.Install(ctx, append([]string{"--values=" + values}, args...)...)
		Expect(err).NotTo(HaveOccurred())
		return out
	}

	It("comes up by one command", func(ctx SpecContext) {
		current := site.Chart
		site.Chart = previous
		defer func() { site.Chart = current }()
		// The images are today's, and know of today's CRDs.
		notes := upgrade(ctx, "--set=crds.upgrade=false")
		Expect(notes).To(ContainSubstring("no Spegel was found"))
		allReady(ctx)
	})

	It("gives no kubelet the controller's private key, nor any Secret but its Pods' pull secret", func(ctx SpecContext) {
		create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: pullSecret}})
		expectNodesToReadNoSecret(ctx)
	})

	It("does what the samples are for: rejects, prefetches, holds and lets go without a pull", func(ctx SpecContext) {
		for _, ref := range []string{"demo/app:v1", "demo/sidecar:v1"} {
			push(ctx, ref, images.MiB)
		}
		_, err := applySample(ctx, "imageprefetch")
		Expect(err).To(MatchError(And(ContainSubstring("spec.images[0]"), ContainSubstring("spec.images[1]"), ContainSubstring("registry.sluice.test/team/**"))))

		Expect(applySample(ctx, "prefetchpolicy")).To(ContainSubstring("created"))
		Expect(applySample(ctx, "deployment")).To(ContainSubstring("created"))
		app := newDeployment("app", "", 0)
		refresh(ctx, app)
		Expect(app.Spec.Paused).To(BeTrue())
		Expect(applySample(ctx, "imageprefetch")).To(ContainSubstring("created"))

		eventuallyPrefetched(ctx, "app")
		eventuallyReleased(ctx, app)
		eventuallyAvailable(ctx, app)
		Expect(site.Upstream.Requests().Tallies()).To(And(Not(BeEmpty()), HaveEach(And(HaveField("Complete", 1), HaveField("Partial", 0)))))
		Expect(pullsOf(ctx, "app")).To(And(HaveLen(4), HaveEach(ContainSubstring("already present on machine"))))
	})

	It("brings a private image with credentials that no agent can read", func(ctx SpecContext) {
		name := push(ctx, "team/private:v1", images.MiB)
		site.Upstream.Protect("team/private", &upstream.Auth{Scheme: upstream.Bearer, Users: map[string]string{"robot": "pa55word"}})
		create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "registry"},
			Type:       corev1.SecretTypeDockerConfigJson,
			StringData: map[string]string{corev1.DockerConfigJsonKey: `{"auths": {"registry.sluice.test": {"username": "robot", "password": "pa55word"}}}`},
		})
		private := newPrefetch("private", name)
		private.Spec.ImagePullSecrets = []v1alpha1.SecretReference{{Name: "registry"}}
		create(ctx, private)
		eventuallyPrefetched(ctx, "private")
	})

	It("is upgraded in the middle of a distribution and of a hold, and loses neither", func(ctx SpecContext) {
		Expect(printerColumns(ctx)).NotTo(ContainElement("Failed"), "in the previous version")
		inTheMiddle(ctx, "upgraded", func() {
			upgrade(ctx, "--set=distribution.fanout=2", "--set=controller.podAnnotations.generation=two", "--set=agent.podAnnotations.generation=two")
		})
		Expect(printerColumns(ctx)).To(ContainElement("Failed"), "the CRDs came along")
	})

	It("is rolled back in the middle of them, and loses neither", func(ctx SpecContext) {
		inTheMiddle(ctx, "rolled-back", func() {
			_, err := site.Helm(ctx, "rollback", install.Release, "1", "--namespace", install.Namespace, "--wait", "--timeout=3m")
			Expect(err).NotTo(HaveOccurred())
		})
		for _, pod := range slices.Concat(pods(ctx, "controller"), pods(ctx, "agent")) {
			Expect(pod.Annotations).NotTo(HaveKey("generation"))
		}
		Expect(printerColumns(ctx)).To(ContainElement("Failed"), "the CRDs stay as they are")
		upgrade(ctx)
		allReady(ctx)
	})

	It("renews its certificate under a load of gated writes, and none is rejected", func(ctx SpecContext) {
		writes := startLoad(ctx)
		before, running := secret(ctx).Data["tls.crt"], runs(ctx, "controller")
		renew(ctx)
		Eventually(func() []byte { return secret(ctx).Data["tls.crt"] }).ShouldNot(Equal(before))
		for _, pod := range pods(ctx, "controller") {
			Eventually(served(ctx, pod, "9443")).Should(Equal(leafOf(secret(ctx))), pod.Name)
			Eventually(served(ctx, pod, "9444")).Should(Equal(leafOf(secret(ctx))), pod.Name)
		}
		writes.more(ctx, 20)
		Expect(writes.stop(ctx)).To(BeEmpty())
		Expect(runs(ctx, "controller")).To(Equal(running), "without a restart")
	})

	It("takes the certificates of an issuer with another CA and back, and no agent distrusts a controller", func(ctx SpecContext) {
		createOwnIssuer(ctx)
		asked, running := startCalls(ctx), runs(ctx, "controller")
		first := secret(ctx).Data["ca.crt"]
		upgrade(ctx, "--set=certificate.issuerRef.name=own")
		second := eventuallyServeWithAnotherCA(ctx, first)
		asked.more(ctx, 10)
		expectNodesToReadNoSecret(ctx)
		upgrade(ctx)
		Expect(eventuallyServeWithAnotherCA(ctx, second)).To(Equal(first))
		asked.more(ctx, 10)
		Expect(asked.stop()).To(BeEmpty())
		Expect(runs(ctx, "controller")).To(Equal(running), "without a restart")
	})

	It("replaces its controllers under that load, and none is rejected", func(ctx SpecContext) {
		writes := startLoad(ctx)
		for _, step := range []string{"restart", "status"} {
			_, err := site.Cluster.Kubectl(ctx, "rollout", step, "deployment/sluice-controller", "--namespace", install.Namespace)
			Expect(err).NotTo(HaveOccurred())
		}
		allReady(ctx) // and the old ones are gone
		writes.more(ctx, 20)
		Expect(writes.stop(ctx)).To(BeEmpty())
	})

	It("loses either controller under that load, and rejects nothing once the API server has noticed", func(ctx SpecContext) {
		for _, pod := range pods(ctx, "controller") {
			writes := startLoad(ctx)
			before := runs(ctx, "controller")
			killed := time.Now()
			kill(ctx, pod)
			Eventually(runs).WithArguments(ctx, "controller").ShouldNot(Equal(before))
			allReady(ctx)
			writes.more(ctx, 20)
			rejected := writes.stop(ctx)
			for _, rejection := range rejected {
				Expect(rejection.err).To(MatchError(Or(ContainSubstring("connect"), ContainSubstring("EOF"), ContainSubstring("refused"))))
				Expect(rejection.at).To(BeTemporally("<", killed.Add(10*time.Second)), "an endpoint that is down for so long is in no EndpointSlice")
			}
			AddReportEntry("rejected after "+pod.Name+" was killed", fmt.Sprintf("%d of %d writes", len(rejected), writes.count()))
		}
	})

	It("finds containerd again after that has restarted, without a restart of its own", func(ctx SpecContext) {
		before := pods(ctx, "agent")
		for _, node := range site.Cluster.Nodes() {
			node.Containerd.Stop()
			Expect(node.Containerd.Start(ctx)).To(Succeed())
		}
		name := push(ctx, "team/after-restart:v1", images.MiB)
		create(ctx, newPrefetch("after-restart", name))
		eventuallyPrefetched(ctx, "after-restart")
		Expect(names(pods(ctx, "agent"))).To(ConsistOf(names(before)))
		for _, pod := range pods(ctx, "agent") {
			Expect(pod.Status.ContainerStatuses[0].RestartCount).To(BeZero())
		}
	})

	Context("with a registry over HTTPS that wants a client certificate", func() { pullsOverHTTPS(upgrade) })

	It("repeats in one Event that a pull secret is missing", func(ctx SpecContext) {
		name := push(ctx, "team/no-secret:v1", images.MiB)
		Expect(site.Upstream.CutOff(upstream.Refuse)).To(Succeed()) // so that there is more than one try
		DeferCleanup(site.Upstream.Restore)
		p := newPrefetch("no-secret", name)
		p.Spec.ImagePullSecrets = []v1alpha1.SecretReference{{Name: "absent"}}
		create(ctx, p)
		Eventually(func(g Gomega) []eventsv1.Event {
			var list eventsv1.EventList
			g.Expect(site.Client.List(ctx, &list, client.InNamespace("default"))).To(Succeed())
			return slices.DeleteFunc(list.Items, func(event eventsv1.Event) bool { return event.Regarding.Name != p.Name })
		}).Should(ContainElement(HaveField("Series", Not(BeNil()))))
		Expect(site.Upstream.Restore()).To(Succeed())
		eventuallyPrefetched(ctx, "no-secret")
	})

	It("gives tenants what their roles say", func(ctx SpecContext) {
		may := func(role, verb, resource string) bool {
			review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
				User:               "tenant-" + role,
				ResourceAttributes: &authorizationv1.ResourceAttributes{Namespace: "default", Verb: verb, Group: v1alpha1.SchemeGroupVersion.Group, Resource: resource},
			}}
			Expect(site.Client.Create(ctx, review)).To(Succeed())
			return review.Status.Allowed
		}
		for _, role := range []string{"view", "edit", "admin"} {
			create(ctx, &rbacv1.RoleBinding{
				ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "tenant-" + role},
				RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
				Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "tenant-" + role}},
			})
			Eventually(may).WithArguments(role, "list", "imageprefetches").Should(BeTrue())
			for _, verb := range []string{"create", "update", "patch", "delete", "deletecollection"} {
				Expect(may(role, verb, "imageprefetches")).To(Equal(role != "view"), "%s %s", role, verb)
				Expect(may(role, verb, "imageprefetches/status")).To(BeFalse())
				Expect(may(role, verb, "nodeimagesets")).To(BeFalse())
				Expect(may(role, verb, "prefetchpolicies")).To(BeFalse())
			}
		}
	})

	It("lets go of what opts out", func(ctx SpecContext) {
		impatient := createGated(ctx, "impatient", "nobody", push(ctx, "team/impatient:v1", images.MiB), 1)
		Expect(impatient.Spec.Paused).To(BeTrue())
		_, err := site.Cluster.Kubectl(ctx, "annotate", "deployment/impatient", v1alpha1.GateAnnotation+"="+v1alpha1.GateSkip)
		Expect(err).NotTo(HaveOccurred())
		eventuallyReleased(ctx, impatient)
	})

	It("goes on without cert-manager", func(ctx SpecContext) {
		Expect(site.UninstallCertManager(ctx)).To(Succeed())
		name := push(ctx, "team/later:v1", images.MiB)
		later := createGated(ctx, "later", "later", name, 1)
		Expect(later.Spec.Paused).To(BeTrue())
		create(ctx, newPrefetch("later", name))
		eventuallyReleased(ctx, later)
	})

	It("has every right that it used", func() {
		Expect(deniedSince(time.Time{})).To(BeEmpty())
	})

	It("forbids an agent's token everything but its node's status", func(ctx SpecContext) {
		own, others := pods(ctx, "agent")[0], pods(ctx, "agent")[1]
		agent := agentOf(ctx, own)
		set := func(pod corev1.Pod) *v1alpha1.NodeImageSet {
			return &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: pod.Spec.NodeName}}
		}
		change := func(what string) client.Patch {
			return client.RawPatch(types.MergePatchType, []byte(`{"`+what+`":{"images":[]}}`))
		}
		Expect(agent.List(ctx, &v1alpha1.NodeImageSetList{})).To(Succeed())
		Expect(agent.Status().Patch(ctx, set(own), client.RawPatch(types.MergePatchType, []byte(`{"status":{}}`)))).To(Succeed())
		for what, try := range map[string]func() error{
			"the status of another node": func() error { return agent.Status().Patch(ctx, set(others), change("status")) },
			"what its node is to have":   func() error { return agent.Patch(ctx, set(own), change("spec")) },
			"replacing its status":       func() error { return agent.Status().Update(ctx, set(own)) },
			"deleting its NodeImageSet":  func() error { return agent.Delete(ctx, set(own)) },
			"deleting all of them":       func() error { return agent.DeleteAllOf(ctx, &v1alpha1.NodeImageSet{}) },
			"making one":                 func() error { return agent.Create(ctx, set(own)) },
			"a Secret":                   func() error { return agent.Get(ctx, client.ObjectKeyFromObject(secret(ctx)), &corev1.Secret{}) },
			"the pull secret of a tenant": func() error {
				return agent.Get(ctx, client.ObjectKey{Namespace: "default", Name: "registry"}, &corev1.Secret{})
			},
			"another ConfigMap": func() error {
				return agent.Get(ctx, client.ObjectKey{Namespace: install.Namespace, Name: "kube-root-ca.crt"}, &corev1.ConfigMap{})
			},
			"ConfigMaps":              func() error { return agent.List(ctx, &corev1.ConfigMapList{}, client.InNamespace(install.Namespace)) },
			"Secrets":                 func() error { return agent.List(ctx, &corev1.SecretList{}) },
			"Pods":                    func() error { return agent.List(ctx, &corev1.PodList{}) },
			"its Node":                func() error { return agent.Get(ctx, client.ObjectKey{Name: own.Spec.NodeName}, &corev1.Node{}) },
			"ImagePrefetches":         func() error { return agent.List(ctx, &v1alpha1.ImagePrefetchList{}) },
			"making an ImagePrefetch": func() error { return agent.Create(ctx, newPrefetch("stolen", "app:v1")) },
			"PrefetchPolicies":        func() error { return agent.List(ctx, &v1alpha1.PrefetchPolicyList{}) },
			"Deployments":             func() error { return agent.List(ctx, &appsv1.DeploymentList{}) },
			"a token for somebody": func() error {
				account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: "sluice-controller"}}
				return agent.SubResource("token").Create(ctx, account, &authenticationv1.TokenRequest{})
			},
		} {
			Expect(try()).To(MatchError(apierrors.IsForbidden, "is forbidden"), what)
		}
	})

	It("lets go of everything when it is uninstalled, and leaves nothing but the CRDs", func(ctx SpecContext) {
		held := createGated(ctx, "held", "nobody", push(ctx, "team/held:v1", images.MiB), 1)
		Expect(held.Spec.Paused).To(BeTrue())
		ours := createPaused(ctx, "paused-by-its-owner")

		began := time.Now()
		_, err := site.Helm(ctx, "uninstall", install.Release, "--namespace", install.Namespace, "--wait", "--timeout=3m")
		Expect(err).NotTo(HaveOccurred())

		// The Pods that end have lost their roles by then.
		Expect(deniedSince(began)).NotTo(ContainElement(HavePrefix("sluice-uninstall")))
		refresh(ctx, held, ours)
		Expect(held.Spec.Paused).To(BeFalse())
		Expect(held.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
		Expect(ours.Spec.Paused).To(BeTrue())
		// As docs/install.md says, cert-manager leaves these.
		Eventually(leftovers).WithArguments(ctx).Should(ConsistOf("*v1.Secret sluice-ca", "*v1.Secret sluice-controller-tls"))
		for _, node := range site.Cluster.Nodes() {
			out, err := node.Ctr(ctx, "images", "list", "labels.\"io.cri-containerd.pinned\"==pinned", "--quiet")
			Expect(err).NotTo(HaveOccurred())
			Expect(out).NotTo(ContainSubstring(install.Registry), "pinned on "+node.Name)
		}
		Expect(site.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "app"}, &v1alpha1.ImagePrefetch{})).To(Succeed(), "what tenants made is theirs")
	})

	Context("applied by a program that knows no hooks", func() { appliedAsObjects() })

	It("comes back without cert-manager, by a certificate of its own", func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(site.Client.Delete(ctx, secret(ctx)))).To(Succeed())
		_, err := site.Cluster.Kubectl(ctx, "replace", "--filename", filepath.Join(previous, "crds"))
		Expect(err).NotTo(HaveOccurred())
		create(ctx, spegel())
		back = time.Now()
		Expect(upgrade(ctx, selfManaged)).NotTo(ContainSubstring("no Spegel was found"))
		Expect(printerColumns(ctx)).To(ContainElement("Failed"), "the CRDs that were left are brought up to date")
		allReady(ctx)
		expectNodesToReadNoSecret(ctx)
		name := push(ctx, "team/again:v1", images.MiB)
		again := createGated(ctx, "again", "again", name, 1)
		Expect(again.Spec.Paused).To(BeTrue())
		create(ctx, newPrefetch("again", name))
		eventuallyReleased(ctx, again)
		Expect(site.Client.Create(ctx, newPrefetch("denied", install.Registry+"/elsewhere/app:v1"))).To(MatchError(ContainSubstring("registry.sluice.test/team/**")))
	})

	It("renews the certificate of its own when that is about to end", func(ctx SpecContext) {
		stored := secret(ctx)
		ending := endingTomorrow(stored)
		Expect(site.Client.Update(ctx, stored)).To(Succeed())
		Eventually(func() []byte { return leafOf(secret(ctx)) }).ShouldNot(Equal(ending))
		renewed := leafOf(secret(ctx))
		for _, pod := range pods(ctx, "controller") {
			Eventually(served(ctx, pod, "9443")).Should(Equal(renewed), pod.Name)
		}
	})

	It("makes a CA with another key when its Secret is gone, and neither agents nor the API server distrust it", func(ctx SpecContext) {
		asked, writes := startCalls(ctx), startLoad(ctx)
		before := secret(ctx)
		Expect(site.Client.Delete(ctx, before)).To(Succeed())
		eventuallyServeWithAnotherCA(ctx, before.Data["ca.crt"])
		asked.more(ctx, 10)
		writes.more(ctx, 20)
		Expect(asked.stop()).To(BeEmpty())
		Expect(writes.stop(ctx)).To(BeEmpty())
	})

	It("brings a kind that the version before did not have", func(ctx SpecContext) {
		_, err := site.Cluster.Kubectl(ctx, "delete", "crd", "nodeimagesets.sluice.dev")
		Expect(err).NotTo(HaveOccurred())
		upgrade(ctx, selfManaged)
		create(ctx, newPrefetch("new-kind", push(ctx, "team/new-kind:v1", images.MiB)))
		eventuallyPrefetched(ctx, "new-kind")
	})

	It("has used every right that it has, its hooks' too, and none is wider than its use", func(ctx SpecContext) {
		Expect(deniedSince(back)).To(BeEmpty())
		granted := grantedRights(ctx)
		accounts := map[string]bool{}
		for _, right := range granted {
			accounts[right.account] = true
		}
		Expect(accounts).To(And(HaveLen(5), HaveKey("sluice-controller"), HaveKey("sluice-agent"),
			HaveKey("sluice-crds"), HaveKey("sluice-startup-check"), HaveKey("sluice-uninstall")))
		Expect(needlessRights(granted, requestsSince(time.Time{}))).To(BeEmpty())
	})
})

// applySample runs kubectl on a file of config/samples, and returns what it printed.
func applySample(ctx context.Context, name string) (string, error) {
	return site.Cluster.Kubectl(ctx, "apply", "--filename", filepath.Join(site.Chart, "..", "..", "config", "samples", name+".yaml"))
}

// spegel is what the notes of the chart look for.
func spegel() *appsv1.DaemonSet {
	labels := map[string]string{"app.kubernetes.io/name": "spegel"}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "spegel", Labels: labels},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					NodeSelector: map[string]string{"nowhere": ""},
					Containers:   []corev1.Container{{Name: "registry", Image: "spegel"}},
				},
			},
		},
	}
}

// pullsOf are the messages of the kubelets about the image of a Deployment's Pods.
func pullsOf(ctx context.Context, deployment string) (messages []string) {
	GinkgoHelper()
	var events corev1.EventList
	Expect(site.Client.List(ctx, &events, client.InNamespace("default"))).To(Succeed())
	for _, event := range events.Items {
		if strings.HasPrefix(event.InvolvedObject.Name, deployment+"-") && (event.Reason == "Pulled" || event.Reason == "Pulling") {
			messages = append(messages, event.Message)
		}
	}
	return messages
}

func refresh(ctx context.Context, objects ...client.Object) {
	GinkgoHelper()
	for _, object := range objects {
		Expect(site.Client.Get(ctx, client.ObjectKeyFromObject(object), object)).To(Succeed())
	}
}

func create(ctx context.Context, object client.Object) {
	GinkgoHelper()
	Expect(site.Client.Create(ctx, object)).To(Succeed())
}

func secret(ctx context.Context) *corev1.Secret {
	GinkgoHelper()
	found := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: "sluice-controller-tls"}}
	if err := site.Client.Get(ctx, client.ObjectKeyFromObject(found), found); !apierrors.IsNotFound(err) {
		Expect(err).NotTo(HaveOccurred())
	}
	return found
}
