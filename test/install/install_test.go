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
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/install"
	"github.com/sluice-dev/sluice/test/upstream"
)

// policies let the default namespace prefetch from one corner of the registry.
const policies = `
policies:
  team:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: default}}
    allowedRepositories: [registry.sluice.test/team/**]
`

// The life of an installation, from the first day to the last. Each step finds what
// the one before has left.
var _ = Describe("An installation", Ordered, func() {
	var values, previous string // files, folders

	BeforeAll(func(ctx SpecContext) {
		Expect(i.InstallCertManager(ctx)).To(Succeed())
		values = filepath.Join(GinkgoT().TempDir(), "values.yaml")
		Expect(os.WriteFile(values, []byte(policies), 0o600)).To(Succeed())
		previous = previousChart()
	})
	upgrade := func(ctx context.Context, args ...string) string {
		GinkgoHelper()
		out, err := i.Install(ctx, append([]string{"--values=" + values}, args...)...)
		Expect(err).NotTo(HaveOccurred())
		return out
	}

	It("comes up by one command", func(ctx SpecContext) {
		current := i.Chart
		i.Chart = previous
		defer func() { i.Chart = current }()
		notes := upgrade(ctx)
		Expect(notes).To(ContainSubstring("no Spegel was found"))
		allReady(ctx)
	})

	It("does what the samples are for: refuses, prefetches, holds and lets go without a pull", func(ctx SpecContext) {
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
		Expect(i.Upstream.Requests().Tallies()).To(And(Not(BeEmpty()), HaveEach(And(HaveField("Complete", 1), HaveField("Partial", 0)))))
		Expect(pullsOf(ctx, "app")).To(And(HaveLen(4), HaveEach(ContainSubstring("already present on machine"))))
	})

	It("brings a private image with credentials that no agent can read", func(ctx SpecContext) {
		name := push(ctx, "team/private:v1", images.MiB)
		i.Upstream.Protect("team/private", &upstream.Auth{Scheme: upstream.Bearer, Users: map[string]string{"robot": "pa55word"}})
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
		name := push(ctx, "team/large:v1", 4*images.MiB)
		i.Upstream.SetRate(512 * images.KiB)
		large := createGated(ctx, "large", "large", name, 1)
		create(ctx, newPrefetch("large", name))
		Eventually(func() upstream.Requests { return i.Upstream.Requests().Where(upstream.In("team/large")) }).ShouldNot(BeEmpty())
		before := names(pods(ctx, "agent"), pods(ctx, "controller"))

		upgrade(ctx, "--set=distribution.fanout=2", "--set=controller.podAnnotations.generation=two", "--set=agent.podAnnotations.generation=two")

		Expect(names(pods(ctx, "agent"), pods(ctx, "controller"))).NotTo(ContainElements(before))
		Expect(printerColumns(ctx)).To(ContainElement("Failed"), "the CRDs came along")
		refresh(ctx, large)
		Expect(large.Spec.Paused).To(BeTrue())
		Expect(large.Labels).To(HaveKey(v1alpha1.HoldLabel))
		i.Upstream.SetRate(0)
		eventuallyPrefetched(ctx, "large")
		eventuallyReleased(ctx, large)
		eventuallyAvailable(ctx, large)
	})

	It("is rolled back", func(ctx SpecContext) {
		_, err := i.Helm(ctx, "rollback", install.Release, "1", "--namespace", install.Namespace, "--wait", "--timeout=3m")
		Expect(err).NotTo(HaveOccurred())
		allReady(ctx)
		for _, pod := range pods(ctx, "controller") {
			Expect(pod.Annotations).NotTo(HaveKey("generation"))
		}
		eventuallyPrefetched(ctx, "app")
	})

	It("renews its certificate under a load of gated writes, and none is refused", func(ctx SpecContext) {
		writes := startLoad(ctx)
		before := secret(ctx).Data["tls.crt"]
		renew(ctx)
		Eventually(func() []byte { return secret(ctx).Data["tls.crt"] }).ShouldNot(Equal(before))
		// The kubelet brings the new one into the Pods with its next look at them.
		for _, pod := range pods(ctx, "controller") {
			Eventually(served(ctx, pod, "9443")).WithTimeout(3*time.Minute).Should(Equal(leafOf(secret(ctx))), pod.Name)
			Eventually(served(ctx, pod, "9444")).WithTimeout(time.Minute).Should(Equal(leafOf(secret(ctx))), pod.Name)
		}
		writes.more(ctx, 20)
		Expect(writes.stop()).To(BeEmpty())
	})

	It("replaces its controllers under that load, and none is refused", func(ctx SpecContext) {
		writes := startLoad(ctx)
		for _, step := range []string{"restart", "status"} {
			_, err := i.Cluster.Kubectl(ctx, "rollout", step, "deployment/sluice-controller", "--namespace", install.Namespace)
			Expect(err).NotTo(HaveOccurred())
		}
		allReady(ctx) // and the old ones are gone
		writes.more(ctx, 20)
		Expect(writes.stop()).To(BeEmpty())
	})

	It("loses a controller under that load, and refuses nothing once the API server has noticed", func(ctx SpecContext) {
		writes := startLoad(ctx)
		killed := time.Now()
		kill(ctx, pods(ctx, "controller")[0])
		writes.more(ctx, 20)
		allReady(ctx)
		writes.more(ctx, 20)
		refused := writes.stop()
		for _, refusal := range refused {
			Expect(refusal.err).To(MatchError(Or(ContainSubstring("connect"), ContainSubstring("EOF"), ContainSubstring("refused"))))
			Expect(refusal.at).To(BeTemporally("<", killed.Add(10*time.Second)), "an endpoint that is down for so long is in no EndpointSlice")
		}
		AddReportEntry("refused after a controller was killed", fmt.Sprintf("%d of %d writes", len(refused), writes.count()))
	})

	It("finds containerd again after that has restarted, without a restart of its own", func(ctx SpecContext) {
		before := pods(ctx, "agent")
		for _, node := range i.Cluster.Nodes() {
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

	It("tells again and again of a pull secret that is missing, in one Event", func(ctx SpecContext) {
		name := push(ctx, "team/no-secret:v1", images.MiB)
		Expect(i.Upstream.CutOff(upstream.Refuse)).To(Succeed()) // so that there is more than one try
		DeferCleanup(i.Upstream.Restore)
		p := newPrefetch("no-secret", name)
		p.Spec.ImagePullSecrets = []v1alpha1.SecretReference{{Name: "absent"}}
		create(ctx, p)
		Eventually(func(g Gomega) []eventsv1.Event {
			var list eventsv1.EventList
			g.Expect(i.Client.List(ctx, &list, client.InNamespace("default"))).To(Succeed())
			return slices.DeleteFunc(list.Items, func(event eventsv1.Event) bool { return event.Regarding.Name != p.Name })
		}).Should(ContainElement(HaveField("Series", Not(BeNil()))))
		Expect(i.Upstream.Restore()).To(Succeed())
		eventuallyPrefetched(ctx, "no-secret")
	})

	It("goes on without cert-manager", func(ctx SpecContext) {
		Expect(i.UninstallCertManager(ctx)).To(Succeed())
		name := push(ctx, "team/later:v1", images.MiB)
		later := createGated(ctx, "later", "later", name, 1)
		Expect(later.Spec.Paused).To(BeTrue())
		create(ctx, newPrefetch("later", name))
		eventuallyReleased(ctx, later)
	})

	It("has used every right that it has", func(ctx SpecContext) {
		for _, account := range []string{"sluice-controller", "sluice-agent"} {
			Expect(unused(ctx, account)).To(BeEmpty(), account)
		}
	})

	It("lets go of everything when it is uninstalled, and leaves nothing but the CRDs", func(ctx SpecContext) {
		held := createGated(ctx, "held", "nobody", push(ctx, "team/held:v1", images.MiB), 1)
		Expect(held.Spec.Paused).To(BeTrue())
		ours := createPaused(ctx, "paused-by-its-owner")

		_, err := i.Helm(ctx, "uninstall", install.Release, "--namespace", install.Namespace, "--wait", "--timeout=3m")
		Expect(err).NotTo(HaveOccurred())

		refresh(ctx, held, ours)
		Expect(held.Spec.Paused).To(BeFalse())
		Expect(held.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
		Expect(ours.Spec.Paused).To(BeTrue())
		Expect(leftovers(ctx)).To(BeEmpty())
		for _, node := range i.Cluster.Nodes() {
			out, err := node.Ctr(ctx, "images", "list", "labels.\"io.cri-containerd.pinned\"==pinned", "--quiet")
			Expect(err).NotTo(HaveOccurred())
			Expect(out).NotTo(ContainSubstring(install.Registry), "pinned on "+node.Name)
		}
		Expect(i.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: "app"}, &v1alpha1.ImagePrefetch{})).To(Succeed(), "what tenants made is theirs")
	})

	It("comes back without cert-manager, by a certificate of its own", func(ctx SpecContext) {
		Expect(client.IgnoreNotFound(i.Client.Delete(ctx, secret(ctx)))).To(Succeed())
		upgrade(ctx, "--set=certificate.source=SelfManaged")
		allReady(ctx)
		name := push(ctx, "team/again:v1", images.MiB)
		again := createGated(ctx, "again", "again", name, 1)
		Expect(again.Spec.Paused).To(BeTrue())
		create(ctx, newPrefetch("again", name))
		eventuallyReleased(ctx, again)
		Expect(i.Client.Create(ctx, newPrefetch("denied", install.Registry+"/elsewhere/app:v1"))).NotTo(Succeed())
	})
})

// applySample runs kubectl on a file of config/samples, and returns what it printed.
func applySample(ctx context.Context, name string) (string, error) {
	return i.Cluster.Kubectl(ctx, "apply", "--filename", filepath.Join(i.Chart, "..", "..", "config", "samples", name+".yaml"))
}

// previousChart is the chart as an older version of it might have been: its CRDs
// lack a column.
func previousChart() string {
	GinkgoHelper()
	dir := filepath.Join(GinkgoT().TempDir(), "sluice")
	Expect(os.CopyFS(dir, os.DirFS(i.Chart))).To(Succeed())
	edit := func(name string, change func(map[string]any)) {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		Expect(err).NotTo(HaveOccurred())
		var content map[string]any
		Expect(yaml.Unmarshal(text, &content)).To(Succeed())
		change(content)
		text, err = yaml.Marshal(content)
		Expect(err).NotTo(HaveOccurred())
		Expect(os.WriteFile(path, text, 0o600)).To(Succeed())
	}
	edit("Chart.yaml", func(chart map[string]any) { chart["version"] = "0.0.9" })
	edit("crds/sluice.dev_imageprefetches.yaml", func(crd map[string]any) {
		version := crd["spec"].(map[string]any)["versions"].([]any)[0].(map[string]any)
		var columns []any
		for _, column := range version["additionalPrinterColumns"].([]any) {
			if column.(map[string]any)["name"] != "Failed" {
				columns = append(columns, column)
			}
		}
		version["additionalPrinterColumns"] = columns
	})
	return dir
}

func printerColumns(ctx context.Context) (columns []string) {
	GinkgoHelper()
	var definition apiextensionsv1.CustomResourceDefinition
	Expect(i.Client.Get(ctx, client.ObjectKey{Name: "imageprefetches.sluice.dev"}, &definition)).To(Succeed())
	for _, column := range definition.Spec.Versions[0].AdditionalPrinterColumns {
		columns = append(columns, column.Name)
	}
	return columns
}

// leftovers are the objects of the installation that are still there.
func leftovers(ctx context.Context) (found []string) {
	GinkgoHelper()
	ours := client.MatchingLabels{"app.kubernetes.io/part-of": "sluice"}
	for _, list := range []client.ObjectList{
		&corev1.PodList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &appsv1.DeploymentList{}, &appsv1.DaemonSetList{},
		&rbacv1.ClusterRoleList{}, &rbacv1.ClusterRoleBindingList{}, &rbacv1.RoleList{}, &rbacv1.RoleBindingList{},
		&admissionregistrationv1.MutatingWebhookConfigurationList{}, &admissionregistrationv1.ValidatingWebhookConfigurationList{},
		&admissionregistrationv1.ValidatingAdmissionPolicyList{}, &admissionregistrationv1.ValidatingAdmissionPolicyBindingList{},
		&v1alpha1.PrefetchPolicyList{},
	} {
		Expect(i.Client.List(ctx, list, ours)).To(Succeed())
		for _, object := range items(list) {
			found = append(found, fmt.Sprintf("%T %s", object, object.GetName()))
		}
	}
	var sets v1alpha1.NodeImageSetList
	Expect(i.Client.List(ctx, &sets)).To(Succeed())
	for _, set := range sets.Items {
		found = append(found, "NodeImageSet "+set.Name)
	}
	return found
}

// pullsOf are the messages of the kubelets about the image of a Deployment's Pods.
func pullsOf(ctx context.Context, deployment string) (messages []string) {
	GinkgoHelper()
	var events corev1.EventList
	Expect(i.Client.List(ctx, &events, client.InNamespace("default"))).To(Succeed())
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
		Expect(i.Client.Get(ctx, client.ObjectKeyFromObject(object), object)).To(Succeed())
	}
}

func create(ctx context.Context, object client.Object) {
	GinkgoHelper()
	Expect(i.Client.Create(ctx, object)).To(Succeed())
}

func secret(ctx context.Context) *corev1.Secret {
	GinkgoHelper()
	found := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: install.Namespace, Name: "sluice-controller-tls"}}
	if err := i.Client.Get(ctx, client.ObjectKeyFromObject(found), found); !apierrors.IsNotFound(err) {
		Expect(err).NotTo(HaveOccurred())
	}
	return found
}
