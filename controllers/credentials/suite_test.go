// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/controllers/credentials"
	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/logging"
	"github.com/sluice-dev/sluice/test/admission"
	"github.com/sluice-dev/sluice/test/apiserver"
)

const (
	system     = "sluice-system"
	agent      = "sluice-agent"
	controller = "sluice-controller"
)

var (
	server   *apiserver.Server
	api      client.Client // as an administrator
	endpoint string
	serving  *admission.Certificate
	logs     = &buffer{}
)

func TestCredentialEndpoint(t *testing.T) {
	RegisterFailHandler(Fail)
	RunSpecs(t, "Credential endpoint")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	log := logging.Options{Format: logging.FormatText, Verbosity: 2}.Logger(io.MultiWriter(logs, GinkgoWriter))
	ctrl.SetLogger(log)
	scheme := runtime.NewScheme()
	Expect(clientgoscheme.AddToScheme(scheme)).To(Succeed())
	Expect(v1alpha1.AddToScheme(scheme)).To(Succeed())

	var err error
	server, err = apiserver.Start()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(server.Stop()).To(Succeed()) })
	api, err = client.New(server.Config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())

	create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: system}})
	for _, name := range []string{agent, controller, "stranger"} {
		create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: name}})
	}
	for _, node := range []string{"node-a", "node-b", "node-without-set"} {
		create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
		create(ctx, podOf(agent, node))
	}
	create(ctx, podOf("stranger", "node-a"))
	serve(scheme, controllerConfig(ctx, server.Config))
})

// controllerConfig is that of an account that may do exactly what the markers of the
// package say: in particular, it can neither list nor watch Secrets.
func controllerConfig(ctx context.Context, config *rest.Config) *rest.Config {
	create(ctx, &rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: controller},
		Rules: []rbacv1.PolicyRule{
			{APIGroups: []string{""}, Resources: []string{"secrets", "serviceaccounts"}, Verbs: []string{"get"}},
			{APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"tokenreviews"}, Verbs: []string{"create"}},
			{APIGroups: []string{"events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
			{APIGroups: []string{"sluice.dev"}, Resources: []string{"nodeimagesets"}, Verbs: []string{"get"}},
			{APIGroups: []string{"sluice.dev"}, Resources: []string{"imageprefetches"}, Verbs: []string{"list"}},
		},
	})
	create(ctx, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: controller},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: controller},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: system, Name: controller}},
	})
	config = rest.CopyConfig(config)
	config.Impersonate.UserName = "system:serviceaccount:" + system + ":" + controller
	return config
}

func serve(scheme *runtime.Scheme, config *rest.Config) {
	var err error
	serving, err = admission.NewCertificate(net.IPv4(127, 0, 0, 1))
	Expect(err).NotTo(HaveOccurred())
	manager, err := ctrl.NewManager(config, ctrl.Options{
		Scheme:                 scheme,
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: "0",
	})
	Expect(err).NotTo(HaveOccurred())
	options := credentials.Options{
		BindAddress:         "127.0.0.1:0",
		Audience:            credentialapi.Audience,
		AgentServiceAccount: system + "/" + agent,
	}
	Expect(options.Validate()).To(Succeed())
	server, err := credentials.SetupWithManager(manager, options, serving.Get)
	Expect(err).NotTo(HaveOccurred())
	endpoint = "https://" + server.Addr().String()

	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- manager.Start(ctx) }()
	DeferCleanup(func() {
		cancel()
		Eventually(stopped).WithTimeout(20 * time.Second).Should(Receive(Succeed()))
	})
}

func create(ctx context.Context, object client.Object) {
	GinkgoHelper()
	Expect(api.Create(ctx, object)).To(Succeed())
}

// podOf is a Pod of a service account on a node.
func podOf(account, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: account + "-" + node},
		Spec: corev1.PodSpec{
			ServiceAccountName: account,
			NodeName:           node,
			Containers:         []corev1.Container{{Name: "main", Image: "registry.example.com/agent"}},
		},
	}
}

// token is what the kubelet would project into the Pod of an account on a node.
func token(ctx context.Context, account, node, audience string) string {
	GinkgoHelper()
	return request(ctx, account, authenticationv1.TokenRequestSpec{
		Audiences:      []string{audience},
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: podOf(account, node).Name},
	})
}

func request(ctx context.Context, account string, spec authenticationv1.TokenRequestSpec) string {
	GinkgoHelper()
	wanted := &authenticationv1.TokenRequest{Spec: spec}
	Expect(api.SubResource("token").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: account}}, wanted)).To(Succeed())
	return wanted.Status.Token
}

func tokenOf(ctx context.Context, node string) string {
	GinkgoHelper()
	return token(ctx, agent, node, credentialapi.Audience)
}

// answer is what the endpoint said.
type answer struct {
	Status      int
	Credentials []string // username:password
	Reason      credentialapi.Reason
	Body        string
}

func ask(ctx context.Context, token, image string) answer {
	GinkgoHelper()
	body, err := json.Marshal(credentialapi.Request{Image: image})
	Expect(err).NotTo(HaveOccurred())
	return post(ctx, token, string(body))
}

func post(ctx context.Context, token, body string) answer {
	GinkgoHelper()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+credentialapi.Path, strings.NewReader(body))
	Expect(err).NotTo(HaveOccurred())
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool()}, DisableKeepAlives: true}
	response, err := (&http.Client{Transport: transport}).Do(r)
	Expect(err).NotTo(HaveOccurred())
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	Expect(err).NotTo(HaveOccurred())
	Expect(response.Header).To(HaveKeyWithValue("Content-Type", []string{"application/json"}))
	Expect(response.Header).To(HaveKeyWithValue("Cache-Control", []string{"no-store"}))

	said := answer{Status: response.StatusCode, Body: string(content)}
	if response.StatusCode != http.StatusOK {
		var denied credentialapi.Error
		Expect(json.Unmarshal(content, &denied)).To(Succeed())
		Expect(denied.Message).NotTo(BeEmpty())
		said.Reason = denied.Reason
		return said
	}
	var found credentialapi.Response
	Expect(json.Unmarshal(content, &found)).To(Succeed())
	for _, c := range found.Credentials {
		said.Credentials = append(said.Credentials, c.Username+":"+c.Password)
	}
	return said
}

func pool() *x509.CertPool {
	GinkgoHelper()
	certificates := x509.NewCertPool()
	Expect(certificates.AppendCertsFromPEM(serving.Text)).To(BeTrue())
	return certificates
}

// buffer can be read while others write to it.
type buffer struct {
	mu      sync.Mutex
	content bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}
