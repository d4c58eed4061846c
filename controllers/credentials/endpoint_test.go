// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/credentialapi"
)

const image = "ghcr.io/shop/app:v1"

var _ = Describe("Credential endpoint", func() {
	var shop string // the tenant's namespace
	var onA []v1alpha1.NodeImage

	// want has a node pull images, as the controller would write it.
	want := func(ctx context.Context, node string, images ...v1alpha1.NodeImage) {
		GinkgoHelper()
		set := &v1alpha1.NodeImageSet{
			ObjectMeta: metav1.ObjectMeta{Name: node},
			Spec:       v1alpha1.NodeImageSetSpec{NodeName: node, ImageSet: images},
		}
		Expect(client.IgnoreNotFound(api.Delete(ctx, set.DeepCopy()))).To(Succeed())
		create(ctx, set)
	}
	namespace := func(ctx context.Context) string {
		GinkgoHelper()
		made := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "shop-"}}
		create(ctx, made)
		return made.Name
	}

	BeforeEach(func(ctx SpecContext) {
		shop = namespace(ctx)
		create(ctx, pullSecret(shop, "pull", entry("ghcr.io", "robot", "p4ssw0rd")))
		create(ctx, prefetch(shop, "app", []v1alpha1.ImageReference{image}, "pull"))
		onA = []v1alpha1.NodeImage{fromUpstream(image, secretRef(shop, "pull"))}
		want(ctx, "node-a", onA...)
		want(ctx, "node-b", fromUpstream("ghcr.io/other/app:v1", secretRef(shop, "pull")))
	})

	Context("when a node is to pull the image from the registry", func() {
		It("gives the node's agent what fits", func(ctx SpecContext) {
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(And(HaveStatus(200), HaveField("Credentials", []string{"robot:p4ssw0rd"})))
		})

		It("gives an empty list where no secret has an entry for the registry", func(ctx SpecContext) {
			const public = "quay.io/shop/app:v1"
			create(ctx, prefetch(shop, "public", []v1alpha1.ImageReference{public}, "pull"))
			want(ctx, "node-a", fromUpstream(public, secretRef(shop, "pull")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), public)).To(And(HaveStatus(200), HaveField("Body", MatchJSON(`{"credentials": []}`))))
		})

		It("knows the image under every way to write it", func(ctx SpecContext) {
			create(ctx, pullSecret(shop, "hub", entry("https://index.docker.io/v1/", "hub", "p4ssw0rd")))
			create(ctx, prefetch(shop, "short", []v1alpha1.ImageReference{"nginx"}, "hub"))
			want(ctx, "node-a", fromUpstream("docker.io/library/nginx:latest", secretRef(shop, "hub")))
			for _, name := range []string{"docker.io/library/nginx:latest", "nginx"} {
				Expect(ask(ctx, tokenOf(ctx, "node-a"), name)).To(HaveField("Credentials", []string{"hub:p4ssw0rd"}))
			}
		})

		It("gives those of several prefetches in several namespaces, the most specific first", func(ctx SpecContext) {
			other := namespace(ctx)
			create(ctx, pullSecret(other, "pull", entry("ghcr.io/shop", "special", "p4ssw0rd")))
			create(ctx, prefetch(other, "app", []v1alpha1.ImageReference{image}, "pull"))
			want(ctx, "node-a", fromUpstream(image, secretRef(shop, "pull"), secretRef(other, "pull")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", []string{"special:p4ssw0rd", "robot:p4ssw0rd"}))
		})
	})

	Context("when the prefetch names no Secret", func() {
		const private = "ghcr.io/shop/private:v1"

		It("gives those of its service account", func(ctx SpecContext) {
			create(ctx, serviceAccount(shop, "robot", "pull"))
			other := prefetch(shop, "other", []v1alpha1.ImageReference{private})
			other.Spec.ServiceAccountName = "robot"
			create(ctx, other)
			want(ctx, "node-a", fromUpstream(private, accountRef(shop, "robot")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), private)).To(And(HaveStatus(200), HaveField("Credentials", []string{"robot:p4ssw0rd"})))
		})

		It("gives those of the default one where it names none", func(ctx SpecContext) {
			create(ctx, prefetch(shop, "other", []v1alpha1.ImageReference{private}))
			create(ctx, serviceAccount(shop, "default", "pull"))
			want(ctx, "node-a", fromUpstream(private, accountRef(shop, "default")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), private)).To(And(HaveStatus(200), HaveField("Credentials", []string{"robot:p4ssw0rd"})))
		})

		It("leaves out a service account that no prefetch of its namespace offers for the image", func(ctx SpecContext) {
			create(ctx, serviceAccount(shop, "robot", "pull"))
			By("having one with another service account, and one of that image with secrets of its own")
			create(ctx, prefetch(shop, "other", []v1alpha1.ImageReference{private}))
			both := prefetch(shop, "both", []v1alpha1.ImageReference{private}, "missing")
			both.Spec.ServiceAccountName = "robot"
			create(ctx, both)
			want(ctx, "node-a", fromUpstream(private, accountRef(shop, "robot")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), private)).To(And(HaveStatus(200), HaveField("Credentials", BeEmpty())))
		})

		It("goes on without what is missing, and says so on the prefetch", func(ctx SpecContext) {
			create(ctx, serviceAccount(shop, "robot", "missing", "pull"))
			robot := prefetch(shop, "robot", []v1alpha1.ImageReference{private})
			robot.Spec.ServiceAccountName = "robot"
			create(ctx, robot)
			nobody := prefetch(shop, "nobody", []v1alpha1.ImageReference{private})
			nobody.Spec.ServiceAccountName = "nobody"
			create(ctx, nobody)
			want(ctx, "node-a", fromUpstream(private, accountRef(shop, "nobody"), accountRef(shop, "robot")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), private)).To(And(HaveStatus(200), HaveField("Credentials", []string{"robot:p4ssw0rd"})))

			Eventually(eventsOn(shop, "robot")).WithContext(ctx).Should(ConsistOf(And(
				HaveField("Reason", v1alpha1.ReasonPullSecretMissing),
				HaveField("Note", fmt.Sprintf("Secret %s/missing does not exist; pulling goes on without it", shop)),
			)))
			Eventually(eventsOn(shop, "nobody")).WithContext(ctx).Should(ConsistOf(And(
				HaveField("Reason", v1alpha1.ReasonPullSecretMissing),
				HaveField("Note", fmt.Sprintf("ServiceAccount %s/nobody does not exist; pulling goes on without it", shop)),
				HaveField("Related.Kind", "ServiceAccount"),
			)))
		})
	})

	Context("when the Secret is rotated", func() {
		It("gives the new one at the next request", func(ctx SpecContext) {
			token := tokenOf(ctx, "node-a")
			Expect(ask(ctx, token, image)).To(HaveField("Credentials", []string{"robot:p4ssw0rd"}))

			rotated := pullSecret(shop, "pull", entry("ghcr.io", "robot", "n3w"))
			Expect(api.Update(ctx, rotated)).To(Succeed())
			Expect(ask(ctx, token, image)).To(HaveField("Credentials", []string{"robot:n3w"}))

			Expect(api.Delete(ctx, rotated)).To(Succeed())
			Expect(ask(ctx, token, image)).To(And(HaveStatus(200), HaveField("Credentials", BeEmpty())))
		})
	})

	Context("when the node is not to pull the image from the registry", func() {
		It("gives node A nothing of node B, and node B nothing of node A", func(ctx SpecContext) {
			Expect(ask(ctx, tokenOf(ctx, "node-b"), image)).To(BeDenied(404, credentialapi.ReasonNotWanted))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), "ghcr.io/other/app:v1")).To(BeDenied(404, credentialapi.ReasonNotWanted))
		})

		It("gives nothing for another tag of the same repository", func(ctx SpecContext) {
			Expect(ask(ctx, tokenOf(ctx, "node-a"), "ghcr.io/shop/app:v2")).To(BeDenied(404, credentialapi.ReasonNotWanted))
		})

		It("gives nothing to a node without a NodeImageSet", func(ctx SpecContext) {
			Expect(ask(ctx, tokenOf(ctx, "node-without-set"), image)).To(BeDenied(404, credentialapi.ReasonNotWanted))
		})

		It("gives nothing to a node that pulls it from the mirror", func(ctx SpecContext) {
			onA[0].RegistryPolicy = v1alpha1.RegistryPolicyMirror
			want(ctx, "node-a", onA...)
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(BeDenied(403, credentialapi.ReasonNotNeeded))
		})

		It("gives nothing any more once the image is withdrawn", func(ctx SpecContext) {
			token := tokenOf(ctx, "node-a")
			Expect(ask(ctx, token, image)).To(HaveStatus(200))
			want(ctx, "node-a")
			Expect(ask(ctx, token, image)).To(BeDenied(404, credentialapi.ReasonNotWanted))
		})
	})

	Context("when a NodeImageSet names a Secret that no prefetch of its namespace offers for the image", func() {
		It("leaves the Secret out", func(ctx SpecContext) {
			victim := namespace(ctx)
			create(ctx, pullSecret(victim, "pull", entry("ghcr.io", "victim", "p4ssw0rd")))
			want(ctx, "node-a", fromUpstream(image, secretRef(victim, "pull"), secretRef(shop, "pull")))
			By("having no prefetch at all")
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", []string{"robot:p4ssw0rd"}))

			By("having one that names the Secret for another image")
			create(ctx, prefetch(victim, "own", []v1alpha1.ImageReference{"ghcr.io/victim/app:v1"}, "pull"))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", []string{"robot:p4ssw0rd"}))

			By("having one that names the image without the Secret")
			create(ctx, prefetch(victim, "same", []v1alpha1.ImageReference{image}))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", []string{"robot:p4ssw0rd"}))
		})
	})

	DescribeTable("denies credentials for a token that is not a valid one of an agent on a node",
		func(ctx SpecContext, make func(context.Context) string, why string) {
			presented := make(ctx)
			before := len(logs.String())
			said := ask(ctx, presented, image)
			Expect(said).To(BeDenied(401, credentialapi.ReasonUnauthorized))

			logged := logs.String()[before:]
			Expect(logged).To(ContainSubstring("Denied credentials"))
			Expect(logged).To(ContainSubstring(why))
			for _, part := range strings.Split(presented, ".") {
				if len(part) > 20 {
					Expect(logged).NotTo(ContainSubstring(part))
					Expect(said.Body).NotTo(ContainSubstring(part))
				}
			}
		},
		Entry("none", func(context.Context) string { return "" }, "no bearer token"),
		Entry("nonsense", func(context.Context) string { return "this-is-not-a-token-at-all" }, "not valid"),
		Entry("expired", func(ctx context.Context) string {
			return resigned(tokenOf(ctx, "node-a"), -time.Hour)
		}, "not valid"),
		Entry("signed by another", func(ctx context.Context) string {
			parts := strings.Split(tokenOf(ctx, "node-a"), ".")
			parts[2] = base64.RawURLEncoding.EncodeToString(make([]byte, 256))
			return strings.Join(parts, ".")
		}, "not valid"),
		Entry("for the API server", func(ctx context.Context) string {
			return token(ctx, agent, "node-a", "https://kubernetes.default.svc.cluster.local")
		}, "not valid"),
		Entry("for another audience", func(ctx context.Context) string {
			return token(ctx, agent, "node-a", "vault")
		}, "not valid"),
		Entry("of another service account on the node", func(ctx context.Context) string {
			return token(ctx, "stranger", "node-a", credentialapi.Audience)
		}, "belongs to system:serviceaccount:"+system+":stranger"),
		Entry("of the agent's account, but bound to no node", func(ctx context.Context) string {
			return request(ctx, agent, authenticationv1.TokenRequestSpec{Audiences: []string{credentialapi.Audience}})
		}, "not bound to a node"),
		Entry("of an agent's Pod that is gone", func(ctx context.Context) string {
			pod := podOf(agent, "node-a")
			pod.Name = "gone"
			create(ctx, pod)
			token := request(ctx, agent, authenticationv1.TokenRequestSpec{
				Audiences:      []string{credentialapi.Audience},
				BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name},
			})
			Expect(api.Delete(ctx, pod, client.GracePeriodSeconds(0))).To(Succeed())
			return token
		}, "not valid"),
	)

	It("accepts the token that it denies as expired, while that is valid", func(ctx SpecContext) {
		Expect(ask(ctx, resigned(tokenOf(ctx, "node-a"), time.Hour), image)).To(HaveStatus(200))
	})

	Context("when a pull secret cannot be used", func() {
		It("goes on without one that is missing, and says so on the prefetch", func(ctx SpecContext) {
			both := prefetch(shop, "both", []v1alpha1.ImageReference{image}, "missing", "pull")
			create(ctx, both)
			want(ctx, "node-a", fromUpstream(image, secretRef(shop, "missing"), secretRef(shop, "pull")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", []string{"robot:p4ssw0rd"}))

			Eventually(eventsOn(shop, "both")).WithContext(ctx).Should(ConsistOf(And(
				HaveField("Type", "Warning"),
				HaveField("Reason", v1alpha1.ReasonPullSecretMissing),
				HaveField("Note", fmt.Sprintf("Secret %s/missing does not exist; pulling goes on without it", shop)),
			)))
			Consistently(eventsOn(shop, "app")).WithContext(ctx).WithTimeout(200 * time.Millisecond).Should(BeEmpty())
		})

		It("uses the good entries of a malformed one, and names the bad ones without their content", func(ctx SpecContext) {
			create(ctx, pullSecret(shop, "broken",
				`"ghcr.io/shop": {"auth": "c3VwZXJzZWNyZXQ="}`, `"supersecret": {"auth": "ghcr.io"}`, entry("ghcr.io", "second", "p4ssw0rd")))
			create(ctx, prefetch(shop, "broken", []v1alpha1.ImageReference{image}, "broken"))
			want(ctx, "node-a", fromUpstream(image, secretRef(shop, "broken")))
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", []string{"second:p4ssw0rd"}))

			Eventually(eventsOn(shop, "broken")).WithContext(ctx).Should(ConsistOf(And(
				HaveField("Reason", v1alpha1.ReasonPullSecretMalformed),
				HaveField("Note", And(ContainSubstring("entry ghcr.io:"), ContainSubstring("Secret "+shop+"/broken, key .dockerconfigjson"))),
				HaveField("Related.Name", "broken"),
			)))
		})

		It("reports another malformed entry, too, when the Secret has changed in between", func(ctx SpecContext) {
			secret := pullSecret(shop, "twice", `"ghcr.io": {"auth": "supersecret"}`)
			create(ctx, secret)
			create(ctx, prefetch(shop, "twice", []v1alpha1.ImageReference{image}, "twice"))
			want(ctx, "node-a", fromUpstream(image, secretRef(shop, "twice")))
			for range 2 { // the second time counts up the first Event
				Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", BeEmpty()))
			}
			Eventually(eventsOn(shop, "twice")).WithContext(ctx).WithTimeout(20 * time.Second).Should(ConsistOf(HaveField("Note", ContainSubstring("entry ghcr.io:"))))

			secret.Data = pullSecret(shop, "twice", entry("ghcr.io", "second", "p4ssw0rd"), `"a-registry:5000": {"auth": "supersecret"}`).Data
			Expect(api.Update(ctx, secret)).To(Succeed())
			Expect(ask(ctx, tokenOf(ctx, "node-a"), image)).To(HaveField("Credentials", []string{"second:p4ssw0rd"}))
			Eventually(eventsOn(shop, "twice")).WithContext(ctx).WithTimeout(20 * time.Second).Should(ConsistOf(
				HaveField("Note", ContainSubstring("entry ghcr.io:")), HaveField("Note", ContainSubstring("entry 2 "))))
		})
	})

	DescribeTable("denies credentials for a malformed request",
		func(ctx SpecContext, body string, status int) {
			Expect(post(ctx, tokenOf(ctx, "node-a"), body)).To(BeDenied(status, credentialapi.ReasonBadRequest))
		},
		Entry("no JSON", "image=nginx", 400),
		Entry("nothing", "", 400),
		Entry("no image", "{}", 400),
		Entry("an image that does not parse", `{"image": "https://ghcr.io/shop/app"}`, 400),
		Entry("a body without end", `{"image": "`+strings.Repeat("a", 2*credentialapi.MaxRequestBytes), 413),
	)

	It("speaks nothing but TLS 1.3", func(ctx SpecContext) {
		address := strings.TrimPrefix(endpoint, "https://")
		_, err := tls.Dial("tcp", address, &tls.Config{RootCAs: pool(), MaxVersion: tls.VersionTLS12})
		Expect(err).To(MatchError(ContainSubstring("protocol version")))

		response, err := http.Post("http://"+address+credentialapi.Path, "application/json", strings.NewReader("{}"))
		Expect(err).NotTo(HaveOccurred())
		Expect(response.Body.Close()).To(Succeed())
		Expect(response.StatusCode).To(Equal(http.StatusBadRequest))
	})

	AfterEach(func(ctx SpecContext) {
		// Whatever a spec asked for: neither a password nor its base64 may be in logs, Events or
		// statuses.
		var all eventsv1.EventList
		Expect(api.List(ctx, &all)).To(Succeed())
		eventsText, err := json.Marshal(all.Items)
		Expect(err).NotTo(HaveOccurred())
		var prefetches v1alpha1.ImagePrefetchList
		Expect(api.List(ctx, &prefetches)).To(Succeed())
		statuses, err := json.Marshal(prefetches.Items)
		Expect(err).NotTo(HaveOccurred())
		for where, text := range map[string]string{"the log": logs.String(), "an Event": string(eventsText), "a status": string(statuses)} {
			for _, secret := range []string{
				"p4ssw0rd", "n3w", "supersecret", "c3VwZXJzZWNyZXQ",
				base64.StdEncoding.EncodeToString([]byte("robot:p4ssw0rd")), base64.StdEncoding.EncodeToString([]byte("p4ssw0rd")),
			} {
				Expect(text).NotTo(ContainSubstring(secret), "in %s", where)
			}
		}
	})
})

// HaveStatus matches an answer by its status.
func HaveStatus(status int) OmegaMatcher { return HaveField("Status", status) }

// BeDenied matches an answer that gives nothing, with the reason.
func BeDenied(status int, reason credentialapi.Reason) OmegaMatcher {
	return And(HaveStatus(status), HaveField("Reason", reason), HaveField("Credentials", BeEmpty()))
}

func entry(registry, username, password string) string {
	return fmt.Sprintf("%q: {%q: %q}", registry, "auth", base64.StdEncoding.EncodeToString([]byte(username+":"+password)))
}

func pullSecret(namespace, name string, entries ...string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Type:       corev1.SecretTypeDockerConfigJson,
		Data:       map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": {` + strings.Join(entries, ", ") + `}}`)},
	}
}

func prefetch(namespace, name string, images []v1alpha1.ImageReference, pullSecrets ...string) *v1alpha1.ImagePrefetch {
	made := &v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	made.Spec.Images = images
	for _, secret := range pullSecrets {
		made.Spec.ImagePullSecrets = append(made.Spec.ImagePullSecrets, v1alpha1.SecretReference{Name: secret})
	}
	return made
}

func secretRef(namespace, name string) v1alpha1.PullSecretSource {
	return v1alpha1.PullSecretSource{Namespace: namespace, Name: name}
}

func accountRef(namespace, name string) v1alpha1.PullSecretSource {
	return v1alpha1.PullSecretSource{Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: namespace, Name: name}
}

func serviceAccount(namespace, name string, pullSecrets ...string) *corev1.ServiceAccount {
	made := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	for _, secret := range pullSecrets {
		made.ImagePullSecrets = append(made.ImagePullSecrets, corev1.LocalObjectReference{Name: secret})
	}
	return made
}

func fromUpstream(name string, pullSecrets ...v1alpha1.PullSecretSource) v1alpha1.NodeImage {
	return v1alpha1.NodeImage{Name: name, RegistryPolicy: v1alpha1.RegistryPolicyDefault, ImagePullSecrets: pullSecrets}
}

// eventsOn are the Events on an ImagePrefetch.
func eventsOn(namespace, name string) func(context.Context) ([]eventsv1.Event, error) {
	return func(ctx context.Context) ([]eventsv1.Event, error) {
		var all eventsv1.EventList
		err := api.List(ctx, &all, client.InNamespace(namespace))
		var found []eventsv1.Event
		for _, event := range all.Items {
			if event.Regarding.Name == name && event.Regarding.Kind == "ImagePrefetch" {
				found = append(found, event)
			}
		}
		return found, err
	}
}

// resigned returns a token with the same claims and another expiry, signed with the API server's key:
// the API issues none that is valid for less than ten minutes.
func resigned(token string, expiresIn time.Duration) string {
	GinkgoHelper()
	parts := strings.Split(token, ".")
	content, err := base64.RawURLEncoding.DecodeString(parts[1])
	Expect(err).NotTo(HaveOccurred())
	claims := map[string]any{}
	Expect(json.Unmarshal(content, &claims)).To(Succeed())
	expiry := time.Now().Add(expiresIn)
	claims["exp"], claims["iat"], claims["nbf"] = expiry.Unix(), expiry.Add(-2*time.Hour).Unix(), expiry.Add(-2*time.Hour).Unix()
	content, err = json.Marshal(claims)
	Expect(err).NotTo(HaveOccurred())
	signed := parts[0] + "." + base64.RawURLEncoding.EncodeToString(content)

	encoded, err := server.TokenKey()
	Expect(err).NotTo(HaveOccurred())
	block, _ := pem.Decode(encoded)
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	Expect(err).NotTo(HaveOccurred())
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, parsed.(*ecdsa.PrivateKey), digest[:])
	Expect(err).NotTo(HaveOccurred())
	signature := append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...) // as RFC 7518 has it
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}
