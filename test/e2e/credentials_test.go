// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/stack"
	"github.com/sluice-dev/sluice/test/upstream"
)

var _ = Describe("A private image", func() {
	const right, wrong = "c0rrect-h0rse", "wr0ng-d0nkey"

	// private pushes an image that the registry gives to one robot only.
	private := func(ctx context.Context, repository string, auth upstream.Auth) (name, digest string) {
		GinkgoHelper()
		name, digest = push(ctx, repository+":v1", repository)
		s.Upstream.Protect(repository, &auth)
		return name, digest
	}
	robot := func(scheme upstream.Scheme) upstream.Auth {
		return upstream.Auth{Scheme: scheme, Users: map[string]string{"robot": right}}
	}
	identity := upstream.Auth{Scheme: upstream.Bearer, IdentityToken: right}

	DescribeTable("comes to every node with the credentials of the prefetch's Secret, and only the seed uses them",
		func(ctx SpecContext, repository string, auth upstream.Auth, entries string) {
			name, digest := private(ctx, repository, auth)
			secret := pullSecret(ctx, strings.ReplaceAll(repository, "/", "-"), entries)
			p := prefetch(ctx, secret.Name, withSecrets(imagesOf(name), secret.Name))
			eventuallyReady(ctx, p)

			for _, node := range s.Cluster.Nodes() {
				Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
			}
			seedOf(repository)
		},
		Entry("a password, for the Basic scheme", "private/basic", robot(upstream.Basic), entryOf(stack.Registry, right)),
		Entry("a password, for a token server", "private/bearer", robot(upstream.Bearer), entryOf(stack.Registry, right)),
		Entry("an identity token", "private/identity", identity, identityOf(right)),
		Entry("the entry for its path, before that for the host", "private/path", robot(upstream.Bearer),
			entryOf(stack.Registry, wrong)+", "+entryOf(stack.Registry+"/private/path", right)),
		Entry("the entry for the host, after the registry refused that for its path", "private/second", robot(upstream.Bearer),
			entryOf(stack.Registry+"/private/second", wrong)+", "+entryOf("https://"+stack.Registry+"/v2/", right)),
	)

	It("comes with the credentials of the service account, as for a Pod that names no Secret", func(ctx SpecContext) {
		name, digest := private(ctx, "private/account", robot(upstream.Bearer))
		secret := pullSecret(ctx, "private-account", entryOf(stack.Registry, right))
		account := &corev1.ServiceAccount{
			ObjectMeta:       metav1.ObjectMeta{Namespace: "default", Name: "robot"},
			ImagePullSecrets: []corev1.LocalObjectReference{{Name: secret.Name}},
		}
		Expect(s.Client.Create(ctx, account)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(s.Client.Delete(ctx, account)).To(Succeed()) })
		spec := imagesOf(name)
		spec.ServiceAccountName = account.Name
		p := prefetch(ctx, "private-account", spec)
		eventuallyReady(ctx, p)

		for _, node := range s.Cluster.Nodes() {
			Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
		}
		seedOf("private/account")
	})

	Context("when no credential is right", func() {
		DescribeTable("says so on the prefetch, shows the credentials to nobody, and goes on when the Secret is rotated",
			func(ctx SpecContext, repository string, auth upstream.Auth, entry func(password string) string) {
				name, digest := private(ctx, repository, auth)
				secret := pullSecret(ctx, strings.ReplaceAll(repository, "/", "-"), entry(wrong))
				pullSecret(ctx, "broken", fmt.Sprintf(`%q: {"auth": %q}`, stack.Registry, wrong))
				p := prefetch(ctx, secret.Name, withSecrets(imagesOf(name), "missing", "broken", secret.Name))

				Eventually(func(g Gomega) {
					g.Expect(ready(ctx, p)(g).Status).To(Equal(metav1.ConditionFalse))
					g.Expect(p.Status.Failures).To(ContainElement(HaveField("Reason", v1alpha1.ReasonImagePullUnauthorized)))
					g.Expect(events(ctx, p)).To(ContainElements(
						HavePrefix(v1alpha1.ReasonPullSecretMissing+": Secret default/missing "),
						HavePrefix(v1alpha1.ReasonPullSecretMalformed+": Secret default/broken, key .dockerconfigjson, entry "+stack.Registry),
					))
				}).Should(Succeed())
				expectToldNobody(ctx, wrong)

				secret.StringData = map[string]string{corev1.DockerConfigJsonKey: dockerConfig(entry(right))}
				Expect(s.Client.Update(ctx, secret)).To(Succeed())
				patch := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"sluice.dev/refresh":"rotated"}}}`))
				Expect(s.Client.Patch(ctx, p, patch)).To(Succeed())

				eventuallyReady(ctx, p)
				for _, node := range s.Cluster.Nodes() {
					Expect(digestOn(ctx, node, name)).To(Equal(digest), node.Name)
				}
				expectToldNobody(ctx, wrong, right)
			},
			Entry("a password", "private/rotated", robot(upstream.Bearer), func(password string) string { return entryOf(stack.Registry, password) }),
			Entry("an identity token", "private/renewed", identity, identityOf),
		)
	})

	DescribeTable("does not leak where a registry repeats the credentials that it refuses",
		func(ctx SpecContext, repository string, auth upstream.Auth, entry, echo string) {
			name, _ := private(ctx, repository, auth)
			DeferCleanup(s.Upstream.Inject(upstream.In(repository), 0, upstream.Echo(http.StatusForbidden)))
			secret := pullSecret(ctx, strings.ReplaceAll(repository, "/", "-"), entry)
			p := prefetch(ctx, secret.Name, withSecrets(imagesOf(name), secret.Name))

			Eventually(func(g Gomega) {
				g.Expect(ready(ctx, p)(g).Status).To(Equal(metav1.ConditionFalse))
				g.Expect(p.Status.Failures).To(ContainElement(HaveField("Message", ContainSubstring("no access for "+echo))))
			}).Should(Succeed())
			expectToldNobody(ctx, right)
		},
		Entry("a password, for the Basic scheme", "private/echoed-basic", robot(upstream.Basic), entryOf(stack.Registry, right),
			"robot:[credential], Basic [credential]"),
		Entry("a password, for a token server", "private/echoed-bearer", robot(upstream.Bearer), entryOf(stack.Registry, right),
			"robot:[credential], Bearer [credential]"),
		Entry("an identity token", "private/echoed-identity", identity, identityOf(right), "[credential], Bearer [credential]"),
	)
})

// expectToldNobody looks for passwords and identity tokens, as such and in base64,
// wherever people look: in the logs of all programs, in Events, and in all that Sluice
// writes.
func expectToldNobody(ctx context.Context, passwords ...string) {
	GinkgoHelper()
	told := map[string]string{}
	logs, err := filepath.Glob(filepath.Join(s.Cluster.LogDir(), "*"))
	Expect(err).NotTo(HaveOccurred())
	for _, file := range logs {
		content, err := os.ReadFile(file)
		Expect(err).NotTo(HaveOccurred())
		told[file] = string(content)
	}
	Expect(told).To(HaveKeyWithValue(s.Cluster.AuditLog(), ContainSubstring("/secrets")))
	Expect(told).To(HaveKeyWithValue(s.Controllers()[0].Log, ContainSubstring("Handed out credentials")))
	Expect(told).To(ContainElement(ContainSubstring("Pull failed")), "agents log their failures")
	for _, list := range []client.ObjectList{&eventsv1.EventList{}, &v1alpha1.ImagePrefetchList{}, &v1alpha1.NodeImageSetList{}} {
		Expect(s.Client.List(ctx, list)).To(Succeed())
		content, err := json.Marshal(list)
		Expect(err).NotTo(HaveOccurred())
		told[fmt.Sprintf("%T", list)] = string(content)
	}
	for where, text := range told {
		for _, password := range passwords {
			for _, form := range []string{
				password,
				strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(password)), "="),
				strings.TrimRight(base64.StdEncoding.EncodeToString([]byte("robot:"+password)), "="),
			} {
				Expect(strings.Contains(text, form)).To(BeFalse(), "%s holds %q", where, form)
			}
		}
	}
}

// entryOf is the robot's entry in a pull secret.
func entryOf(registry, password string) string {
	return fmt.Sprintf(`%q: {"auth": %q}`, registry, base64.StdEncoding.EncodeToString([]byte("robot:"+password)))
}

// identityOf is an entry with an identity token.
func identityOf(token string) string {
	return fmt.Sprintf(`%q: {"identitytoken": %q}`, stack.Registry, token)
}

func dockerConfig(entries string) string { return `{"auths": {` + entries + `}}` }

// pullSecret makes a Secret that goes with its spec.
func pullSecret(ctx context.Context, name, entries string) *corev1.Secret {
	GinkgoHelper()
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Type:       corev1.SecretTypeDockerConfigJson,
		StringData: map[string]string{corev1.DockerConfigJsonKey: dockerConfig(entries)},
	}
	Expect(s.Client.Create(ctx, secret)).To(Succeed())
	DeferCleanup(func(ctx SpecContext) { Expect(s.Client.Delete(ctx, secret)).To(Succeed()) })
	return secret
}

func withSecrets(spec v1alpha1.ImagePrefetchSpec, names ...string) v1alpha1.ImagePrefetchSpec {
	for _, name := range names {
		spec.ImagePullSecrets = append(spec.ImagePullSecrets, v1alpha1.SecretReference{Name: name})
	}
	return spec
}
