// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/sluice-dev/sluice/test/cluster"
)

const specTimeout = 2 * time.Minute

var _ = Describe("Cluster", func() {
	It("has nodes that are Ready, with the labels and taints asked for", func(ctx context.Context) {
		nodes, err := client().CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		Expect(err).NotTo(HaveOccurred())
		Expect(nodes.Items).To(HaveLen(3))
		for i, node := range nodes.Items {
			Expect(node.Name).To(Equal(shared.Nodes()[i].Name))
			Expect(node.Status.Conditions).To(ContainElement(And(
				HaveField("Type", corev1.NodeReady), HaveField("Status", corev1.ConditionTrue))))
		}
		Expect(nodes.Items[0].Labels).To(And(HaveKeyWithValue(corev1.LabelTopologyZone, "east"), HaveKeyWithValue("disk", "fast")))
		Expect(nodes.Items[2].Spec.Taints).To(ContainElement(HaveField("Key", "dedicated")))
	}, SpecTimeout(specTimeout))

	It("runs a Pod on each node from an image that is there, and the host reaches it", func(ctx context.Context) {
		for _, node := range shared.Nodes() {
			pod := runPod(ctx, node)
			Expect(refused(ctx, pod.Status.PodIP)).To(BeTrue(), "Pod of %s answers", node.Name)
		}
	}, SpecTimeout(specTimeout))

	It("serves what a Pod writes, through the API server", func(ctx context.Context) {
		pod := runPod(ctx, shared.Nodes()[0])
		Expect(shared.Kubectl(ctx, "logs", pod.Name)).To(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("gives Pods tokens that name their node", func(ctx context.Context) {
		node := shared.Nodes()[1]
		pod := runPod(ctx, node)
		token, err := client().CoreV1().ServiceAccounts("default").CreateToken(ctx, "default", &authenticationv1.TokenRequest{
			Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID,
			}},
		}, metav1.CreateOptions{})
		Expect(err).NotTo(HaveOccurred())
		review, err := client().AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{
			Spec: authenticationv1.TokenReviewSpec{Token: token.Status.Token},
		}, metav1.CreateOptions{})
		Expect(err).NotTo(HaveOccurred())
		Expect(review.Status.User.Extra).To(HaveKeyWithValue("authentication.kubernetes.io/node-name",
			authenticationv1.ExtraValue{node.Name}))
	}, SpecTimeout(specTimeout))

	It("has the API server at its Service's address, as Pods are told", func(ctx context.Context) {
		service, err := client().CoreV1().Services("default").Get(ctx, "kubernetes", metav1.GetOptions{})
		Expect(err).NotTo(HaveOccurred())
		Expect(dial(ctx, service.Spec.ClusterIP, "443")).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("logs requests to the API server when asked to", func() {
		Eventually(func() ([]byte, error) { return os.ReadFile(shared.AuditLog()) }).Should(ContainSubstring(`"stage":"ResponseComplete"`))
	})

	It("runs a mirror on each node", func(ctx context.Context) {
		for _, node := range shared.Nodes() {
			request, err := http.NewRequestWithContext(ctx, http.MethodGet, node.MirrorURL()+"/v2/", nil)
			Expect(err).NotTo(HaveOccurred())
			response, err := http.DefaultClient.Do(request)
			Expect(err).NotTo(HaveOccurred())
			Expect(response.Body.Close()).To(Succeed())
			Expect(response).To(HaveHTTPStatus(http.StatusOK))
		}
	}, SpecTimeout(specTimeout))

	It("runs programs on a node, each with the node's files and network, until told otherwise", func(ctx context.Context) {
		node := shared.Nodes()[0]
		process, err := node.Start("sleeper", exec.Command("sh", "-c", "cat /etc/hostname; exec sleep 1000"))
		Expect(err).NotTo(HaveOccurred())
		Eventually(func() ([]byte, error) { return os.ReadFile(process.Log) }).Should(BeEquivalentTo(node.Name + "\n"))
		Expect(os.Readlink(fmt.Sprintf("/proc/%d/ns/net", process.Pid()))).NotTo(Equal(must(os.Readlink("/proc/self/ns/net"))))
		process.Kill()
		Expect(process.Running()).To(BeFalse())
		var exit *exec.ExitError
		Expect(process.Wait()).To(BeAssignableToTypeOf(exit))
	}, SpecTimeout(specTimeout))

	It("adds a node and removes it for good", func(ctx context.Context) {
		node, err := shared.AddNode(ctx, cluster.NodeOptions{Name: "late"})
		Expect(err).NotTo(HaveOccurred())
		runPod(ctx, node)
		Expect(shared.RemoveNode(ctx, node)).To(Succeed())
		Expect(node.Dir).NotTo(BeADirectory())
		Expect(shared.Nodes()).NotTo(ContainElement(node))
		Expect(client().CoreV1().Nodes().Delete(ctx, "late", metav1.DeleteOptions{})).To(Succeed())
	}, SpecTimeout(specTimeout))

	It("has no two nodes of one name", func(ctx context.Context) {
		_, err := shared.AddNode(ctx, cluster.NodeOptions{Name: "node-1"})
		Expect(err).To(MatchError(ContainSubstring("already")))
	}, SpecTimeout(specTimeout))

	It("runs beside another", func(ctx context.Context) {
		other, err := cluster.Start(ctx, cluster.Options{ContainerdOnly: true, Nodes: cluster.Nodes(1)})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(other.Stop)
		Expect(other.GatewayIP).NotTo(Equal(shared.GatewayIP))
		Expect(other.Nodes()[0].Ctr(ctx, "version")).NotTo(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("keeps logs where it is told to", func(ctx context.Context) {
		dir := GinkgoT().TempDir()
		other, err := cluster.Start(ctx, cluster.Options{ContainerdOnly: true, Nodes: cluster.Nodes(1), LogDir: dir})
		Expect(err).NotTo(HaveOccurred())
		Expect(other.Stop()).To(Succeed())
		Expect(os.ReadFile(filepath.Join(dir, "node-1-containerd.log"))).To(ContainSubstring("successfully booted"))
	}, SpecTimeout(specTimeout))

	It("says what to do when the user is not root", func(ctx context.Context) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		// The raw call changes this thread alone, and the saved user is kept.
		asUser(65534)
		_, err := cluster.Start(ctx, cluster.Options{})
		asUser(0)
		Expect(err).To(MatchError(ContainSubstring("sudo make test")))
	}, SpecTimeout(specTimeout))
})

var _ = Describe("Network of a node", func() {
	It("knows registries by the gateway's address, and leads nowhere else", func(ctx context.Context) {
		node := shared.Nodes()[0]
		for _, name := range []string{"registry-1.docker.io", "ghcr.io", "registry.example.com"} {
			Expect(node.Run(ctx, "getent", "hosts", name)).To(HavePrefix(shared.GatewayIP + " "))
		}
		_, err := node.Run(ctx, "ip", "route", "get", "198.51.100.1")
		Expect(err).To(MatchError(ContainSubstring("unreachable")))
	}, SpecTimeout(specTimeout))

	It("can be cut and restored", func(ctx context.Context) {
		node, other := shared.Nodes()[0], shared.Nodes()[1]
		Expect(node.Disconnect(ctx)).To(Succeed())
		DeferCleanup(node.Connect)
		Expect(dial(ctx, node.IP, "10250")).To(Satisfy(os.IsTimeout))
		Expect(dial(ctx, other.IP, "10250")).To(Succeed())
		Expect(node.Connect(ctx)).To(Succeed())
		Eventually(dial).WithArguments(ctx, node.IP, "10250").Should(Succeed())
	}, SpecTimeout(specTimeout))

	It("can be cut off from the gateway alone", func(ctx context.Context) {
		node, other := shared.Nodes()[0], shared.Nodes()[1]
		upstream, err := net.Listen("tcp", net.JoinHostPort(shared.GatewayIP, "0"))
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(upstream.Close)
		ask := func(n *cluster.Node) error {
			host, port, _ := net.SplitHostPort(upstream.Addr().String())
			_, err := n.Run(ctx, "timeout", "1", "bash", "-c", fmt.Sprintf("</dev/tcp/%s/%s", host, port))
			return err
		}
		Expect(ask(node)).To(Succeed())

		Expect(node.DisconnectGateway(ctx)).To(Succeed())
		Expect(ask(node)).NotTo(Succeed())
		Expect(ask(other)).To(Succeed())
		Expect(dial(ctx, node.IP, "10250")).To(Succeed(), "the test still reaches the node")

		Expect(node.ConnectGateway(ctx)).To(Succeed())
		Eventually(ask).WithArguments(node).Should(Succeed())
	}, SpecTimeout(specTimeout))
})

var _ = Describe("Daemons of a node", func() {
	It("can be killed and started again under running Pods", func(ctx context.Context) {
		node := shared.Nodes()[1]
		pod := runPod(ctx, node)
		for _, daemon := range []*cluster.Daemon{node.Containerd, node.Kubelet, node.Mirror} {
			pid := running(daemon).Pid()
			daemon.Kill()
			Expect(daemon.Process()).To(BeNil())
			Expect(daemon.Start(ctx)).To(Succeed())
			Expect(daemon.Process().Pid()).NotTo(Equal(pid))
		}
		again, err := client().CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{})
		Expect(err).NotTo(HaveOccurred())
		Expect(again.Status.ContainerStatuses[0].ContainerID).To(Equal(pod.Status.ContainerStatuses[0].ContainerID))
		Expect(again.Status.ContainerStatuses[0].RestartCount).To(BeZero())
	}, SpecTimeout(specTimeout))

	It("can be stopped, and stay so until started", func(ctx context.Context) {
		node := shared.Nodes()[1]
		node.Containerd.Stop()
		_, err := node.Ctr(ctx, "version")
		Expect(err).To(HaveOccurred())
		Expect(node.Containerd.Start(ctx)).To(Succeed())
		Expect(node.Ctr(ctx, "version")).NotTo(BeEmpty())
	}, SpecTimeout(specTimeout))

	It("have a containerd whose environment is what the test says at its start", func(ctx context.Context) {
		node := shared.Nodes()[1]
		node.ContainerdEnvironment = []string{"HTTPS_PROXY=http://proxy.example.com:3128"}
		restart := func() {
			node.Containerd.Stop()
			Expect(node.Containerd.Start(ctx)).To(Succeed())
		}
		environment := func() []string {
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", running(node.Containerd).Pid()))
			Expect(err).NotTo(HaveOccurred())
			return strings.Split(string(raw), "\x00")
		}
		restart()
		Expect(environment()).To(ContainElement("HTTPS_PROXY=http://proxy.example.com:3128"))
		node.ContainerdEnvironment = nil
		restart()
		Expect(environment()).NotTo(ContainElement(HavePrefix("HTTPS_PROXY=")))
	}, SpecTimeout(specTimeout))

	It("have a mirror that is started again when it ends by itself", func(ctx context.Context) {
		node := shared.Nodes()[1]
		killed := running(node.Mirror)
		killed.Kill()
		Expect(running(node.Mirror)).NotTo(BeIdenticalTo(killed))
		Eventually(dial).WithArguments(ctx, node.IP, "5000").Should(Succeed())
		Expect(logOf(node.Mirror)).To(ContainSubstring("cluster: mirror ended by itself (signal: killed), is started again"))
	}, SpecTimeout(specTimeout))

	It("start a mirror again for as long as it is meant to run, and not after a power failure", func(ctx context.Context) {
		ends := &cluster.Mirror{Command: func(*cluster.Node) *exec.Cmd { return exec.Command("sh", "-c", "exit 3") }}
		other, err := cluster.Start(ctx, cluster.Options{
			ContainerdOnly: true, Nodes: cluster.Nodes(1), Mirror: ends, LogDir: GinkgoT().TempDir(),
		})
		Expect(err).NotTo(HaveOccurred())
		DeferCleanup(other.Stop)
		node := other.Nodes()[0]
		restarts := func() int {
			return strings.Count(logOf(node.Mirror), "ended by itself (exit status 3), is started again")
		}
		const slowest = 2 * time.Second // between two starts
		for _, end := range []func(){node.Mirror.Stop, node.Mirror.Kill, node.PowerOff} {
			before := restarts()
			Expect(node.Mirror.Start(ctx)).To(Succeed())
			Eventually(restarts).Should(BeNumerically(">=", before+2))
			end()
			ended := restarts()
			Consistently(restarts, 2*slowest).Should(Equal(ended))
		}
		Expect(logOf(node.Mirror)).NotTo(ContainSubstring("cannot be started"))
	}, SpecTimeout(specTimeout))

	It("come back, with their Pods, after a power failure", func(ctx context.Context) {
		node := shared.Nodes()[0]
		pod := runPod(ctx, node)
		node.PowerOff()
		Expect(dial(ctx, node.IP, "10250")).NotTo(Succeed())
		Expect(node.PowerOn(ctx)).To(Succeed())
		Eventually(func() (*corev1.Pod, error) {
			return client().CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{})
		}).Should(And(
			HaveField("Status.ContainerStatuses", HaveEach(And(HaveField("Ready", true), HaveField("RestartCount", BeNumerically(">", 0))))),
			HaveField("Status.Phase", corev1.PodRunning),
		))
	}, SpecTimeout(specTimeout))
})

// running is the daemon's process, awaited: a mirror ends with its containerd, and is
// started again.
func running(daemon *cluster.Daemon) (process *cluster.Process) {
	GinkgoHelper()
	Eventually(func() *cluster.Process {
		process = daemon.Process()
		return process
	}).ShouldNot(BeNil())
	return process
}

func logOf(daemon *cluster.Daemon) string {
	GinkgoHelper()
	return string(must(os.ReadFile(daemon.Log())))
}

func client() *kubernetes.Clientset {
	GinkgoHelper()
	config, err := shared.RESTConfig()
	Expect(err).NotTo(HaveOccurred())
	return must(kubernetes.NewForConfig(config))
}

// runPod runs a Pod on the node, until the end of the spec.
func runPod(ctx context.Context, node *cluster.Node) *corev1.Pod {
	GinkgoHelper()
	pods := client().CoreV1().Pods("default")
	pod, err := pods.Create(ctx, pausePod(node), metav1.CreateOptions{})
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func(ctx context.Context) error {
		now := int64(0)
		return pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	})
	Eventually(func() (_ []corev1.ContainerStatus, err error) {
		pod, err = pods.Get(ctx, pod.Name, metav1.GetOptions{})
		return pod.Status.ContainerStatuses, err
	}).Should(ConsistOf(HaveField("Ready", true)))
	return pod
}

func dial(ctx context.Context, ip, port string) error {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(ip, port))
	if err != nil {
		return err
	}
	return conn.Close()
}

// refused reports whether somebody is there, and says that nothing listens.
func refused(ctx context.Context, ip string) bool {
	return strings.Contains(fmt.Sprint(dial(ctx, ip, "81")), syscall.ECONNREFUSED.Error())
}

func asUser(id uintptr) {
	GinkgoHelper()
	_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), id, ^uintptr(0))
	Expect(errno).To(BeZero())
}

func must[T any](value T, err error) T {
	GinkgoHelper()
	Expect(err).NotTo(HaveOccurred())
	return value
}

// pausePod does nothing, on the given node.
func pausePod(node *cluster.Node) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "pause-"},
		Spec: corev1.PodSpec{
			NodeName:    node.Name,
			Containers:  []corev1.Container{{Name: "pause", Image: cluster.PauseImage, ImagePullPolicy: corev1.PullNever}},
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
}
