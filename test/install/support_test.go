// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/cluster"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/install"
)

// push puts a runnable image of four layers of the size into the upstream registry,
// and returns the name that users write.
func push(ctx context.Context, ref string, size int64) string {
	GinkgoHelper()
	image, err := images.Pause(ctx, images.Layers(ref, 4, size)...)
	Expect(err).NotTo(HaveOccurred())
	Expect(site.Upstream.Push(ref, image)).To(Succeed())
	return install.Registry + "/" + ref
}

func newPrefetch(name string, image ...string) *v1alpha1.ImagePrefetch {
	p := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	for _, one := range image {
		p.Spec.Images = append(p.Spec.Images, v1alpha1.ImageReference(one))
	}
	return p
}

func newDeployment(name, image string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					TerminationGracePeriodSeconds: new(int64),
					Containers:                    []corev1.Container{{Name: "app", Image: image, ImagePullPolicy: corev1.PullIfNotPresent}},
				},
			},
		},
	}
}

// createGated creates a Deployment whose rollouts wait for a prefetch without end.
func createGated(ctx context.Context, name, prefetch, image string, replicas int32) *appsv1.Deployment {
	GinkgoHelper()
	d := newDeployment(name, image, replicas)
	d.Annotations = map[string]string{v1alpha1.PrefetchAnnotation: prefetch, v1alpha1.HoldTimeoutAnnotation: "0"}
	create(ctx, d)
	return d
}

func createPaused(ctx context.Context, name string) *appsv1.Deployment {
	GinkgoHelper()
	d := newDeployment(name, "app:v1", 0)
	d.Spec.Paused = true
	create(ctx, d)
	return d
}

func eventuallyPrefetched(ctx context.Context, name string) {
	GinkgoHelper()
	p := newPrefetch(name)
	Eventually(func(g Gomega) {
		g.Expect(site.Client.Get(ctx, client.ObjectKeyFromObject(p), p)).To(Succeed())
		condition := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		g.Expect(condition).NotTo(BeNil())
		g.Expect(condition.ObservedGeneration).To(Equal(p.Generation))
		g.Expect(condition.Status).To(Equal(metav1.ConditionTrue), "%+v", p.Status)
	}).Should(Succeed())
}

func eventuallyReleased(ctx context.Context, d *appsv1.Deployment) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(site.Client.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
		g.Expect(d.Spec.Paused).To(BeFalse())
		g.Expect(d.Labels).NotTo(HaveKey(v1alpha1.HoldLabel))
	}).Should(Succeed())
}

func eventuallyAvailable(ctx context.Context, d *appsv1.Deployment) {
	GinkgoHelper()
	Eventually(func(g Gomega) {
		g.Expect(site.Client.Get(ctx, client.ObjectKeyFromObject(d), d)).To(Succeed())
		g.Expect(d.Status.AvailableReplicas).To(Equal(*d.Spec.Replicas))
	}).Should(Succeed())
}

func allReady(ctx context.Context) {
	GinkgoHelper()
	Eventually(pods).WithArguments(ctx, "controller").Should(And(HaveLen(2), HaveEach(Satisfy(ready))))
	Eventually(pods).WithArguments(ctx, "agent").Should(And(HaveLen(len(site.Cluster.Nodes())), HaveEach(Satisfy(ready))))
}

func names(lists ...[]corev1.Pod) (all []string) {
	for _, list := range lists {
		for _, pod := range list {
			all = append(all, pod.Name)
		}
	}
	return all
}

// runs are the containers of a component's Pods, each with how often it was restarted.
func runs(ctx context.Context, component string) map[string]int32 {
	GinkgoHelper()
	all := map[string]int32{}
	for _, pod := range pods(ctx, component) {
		for _, container := range pod.Status.ContainerStatuses {
			all[pod.Name+"/"+container.Name] = container.RestartCount
		}
	}
	return all
}

// agentOf is a client with a token as the kubelet gives it to the Pod of an agent.
func agentOf(ctx context.Context, pod corev1.Pod) client.Client {
	GinkgoHelper()
	token, err := site.Cluster.Kubectl(ctx, "create", "token", "sluice-agent", "--namespace", install.Namespace,
		"--bound-object-kind=Pod", "--bound-object-name="+pod.Name, "--bound-object-uid="+string(pod.UID))
	Expect(err).NotTo(HaveOccurred())
	config := rest.AnonymousClientConfig(site.Config)
	config.BearerToken = strings.TrimSpace(token)
	agent, err := client.New(config, client.Options{Scheme: site.Client.Scheme()})
	Expect(err).NotTo(HaveOccurred())
	return agent
}

func items(list client.ObjectList) (all []client.Object) {
	GinkgoHelper()
	Expect(meta.EachListItem(list, func(object runtime.Object) error {
		all = append(all, object.(client.Object))
		return nil
	})).To(Succeed())
	return all
}

// renew asks cert-manager for a new certificate, as `cmctl renew` does.
func renew(ctx context.Context) {
	GinkgoHelper()
	_, err := site.Cluster.Kubectl(ctx, "patch", "certificate", "sluice-controller-tls", "--namespace", install.Namespace, "--subresource=status", "--type=json", "--patch",
		fmt.Sprintf(`[{"op": "add", "path": "/status/conditions/-", "value": {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "", "lastTransitionTime": %q}}]`,
			time.Now().UTC().Format(time.RFC3339)))
	Expect(err).NotTo(HaveOccurred())
}

func leafOf(secret *corev1.Secret) []byte {
	GinkgoHelper()
	block, _ := pem.Decode(secret.Data["tls.crt"])
	Expect(block).NotTo(BeNil())
	return block.Bytes
}

// endingTomorrow puts a certificate of the same CA that ends tomorrow into the secret, and returns it.
func endingTomorrow(secret *corev1.Secret) []byte {
	GinkgoHelper()
	ca, err := tls.X509KeyPair(secret.Data["ca.crt"], secret.Data["ca.key"])
	Expect(err).NotTo(HaveOccurred())
	pair, err := tls.X509KeyPair(secret.Data["tls.crt"], secret.Data["tls.key"])
	Expect(err).NotTo(HaveOccurred())
	template := *pair.Leaf
	template.NotAfter = time.Now().Add(24 * time.Hour)
	leaf, err := x509.CreateCertificate(rand.Reader, &template, ca.Leaf, pair.Leaf.PublicKey, ca.PrivateKey)
	Expect(err).NotTo(HaveOccurred())
	secret.Data["tls.crt"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})
	return leaf
}

// served is the certificate that a Pod serves with, which must be one that those who
// know the CA accept.
func served(ctx context.Context, pod corev1.Pod, port string) func(Gomega) []byte {
	return func(g Gomega) []byte {
		roots := x509.NewCertPool()
		g.Expect(roots.AppendCertsFromPEM(secret(ctx).Data["ca.crt"])).To(BeTrue())
		dialer := tls.Dialer{Config: &tls.Config{RootCAs: roots, ServerName: serverName}}
		connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(pod.Status.PodIP, port))
		g.Expect(err).NotTo(HaveOccurred())
		defer func() { _ = connection.Close() }()
		return connection.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw
	}
}

// kill kills the container of a Pod as the kernel's out-of-memory killer would.
func kill(ctx context.Context, pod corev1.Pod) {
	GinkgoHelper()
	_, id, _ := strings.Cut(pod.Status.ContainerStatuses[0].ContainerID, "://")
	nodes := site.Cluster.Nodes()
	at := slices.IndexFunc(nodes, func(node *cluster.Node) bool { return node.Name == pod.Spec.NodeName })
	Expect(at).NotTo(Equal(-1), pod.Spec.NodeName)
	_, err := nodes[at].Ctr(ctx, "tasks", "kill", "--signal=SIGKILL", id)
	Expect(err).NotTo(HaveOccurred())
}

// load writes to a held Deployment as fast as the API server takes it, and each
// write is one that the gate has to be asked about.
type load struct {
	deployment *appsv1.Deployment
	cancel     context.CancelFunc
	done       chan struct{}

	mu       sync.Mutex
	written  int
	rejected []rejection
}

type rejection struct {
	at  time.Time
	err error
}

func startLoad(ctx context.Context) *load {
	GinkgoHelper()
	d := createGated(ctx, "load", "nobody", "app:v1", 0)
	DeferCleanup(func(ctx SpecContext) { Expect(client.IgnoreNotFound(site.Client.Delete(ctx, d))).To(Succeed()) })
	ctx, cancel := context.WithCancel(ctx)
	l := &load{deployment: d, cancel: cancel, done: make(chan struct{})}
	DeferCleanup(cancel)
	go func() {
		defer close(l.done)
		for n := 0; ctx.Err() == nil; n++ {
			patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"n":"%d"}}}}}`, n)
			err := site.Client.Patch(ctx, d.DeepCopy(), client.RawPatch(types.MergePatchType, []byte(patch)))
			if ctx.Err() == nil {
				l.note(err)
			}
		}
	}()
	return l
}

func (l *load) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.written++
	if err != nil {
		l.rejected = append(l.rejected, rejection{time.Now(), err})
	}
}

func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written
}

// more waits until n further writes were tried.
func (l *load) more(ctx context.Context, n int) {
	GinkgoHelper()
	Eventually(ctx, l.count).Should(BeNumerically(">=", l.count()+n))
}

// stop ends the load, which must have been held to the end.
func (l *load) stop(ctx context.Context) []rejection {
	GinkgoHelper()
	l.cancel()
	<-l.done
	refresh(ctx, l.deployment)
	Expect(l.deployment.Spec.Paused).To(BeTrue())
	Expect(l.deployment.Labels).To(HaveKey(v1alpha1.HoldLabel))
	Expect(site.Client.Delete(ctx, l.deployment)).To(Succeed())
	return l.rejected
}
