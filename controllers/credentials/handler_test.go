// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/credentialapi"
	"github.com/sluice-dev/sluice/internal/logging"
)

const someToken = "header.claims.signature"

// good is what the API server says of the token of an agent.
var good = authenticationv1.TokenReviewStatus{
	Authenticated: true,
	Audiences:     []string{credentialapi.Audience},
	User: authenticationv1.UserInfo{
		Username: "system:serviceaccount:sluice-system:sluice-agent",
		Extra:    map[string]authenticationv1.ExtraValue{nodeNameKey: {"node-a"}},
	},
}

func answering(status authenticationv1.TokenReviewStatus) func(*authenticationv1.TokenReview) error {
	return func(review *authenticationv1.TokenReview) error {
		review.Status = status
		return nil
	}
}

// What a real API server does not do on demand: fail, or answer strangely.
func TestTheHandlerHandsOutNothingWhenTheAPIServerIsInTrouble(t *testing.T) {
	for _, tt := range []struct {
		reason     string
		review     func(*authenticationv1.TokenReview) error
		failing    string // the kind that cannot be read
		wantStatus int
		wantLog    string
	}{
		{"all is well", answering(good), "", http.StatusOK, "Handed out"},
		{
			"no TokenReview", func(*authenticationv1.TokenReview) error { return errors.New("connection refused") }, "",
			http.StatusServiceUnavailable, "connection refused",
		},
		{
			"an error that quotes the token", func(r *authenticationv1.TokenReview) error { return errors.New("cannot parse " + r.Spec.Token) }, "",
			http.StatusServiceUnavailable, "cannot parse [token]",
		},
		{
			"a verdict that quotes the token", answering(authenticationv1.TokenReviewStatus{Error: "cannot parse " + someToken}), "",
			http.StatusUnauthorized, "cannot parse [token]",
		},
		{
			"an API server that knows nothing of audiences", answering(authenticationv1.TokenReviewStatus{Authenticated: true, User: good.User}), "",
			http.StatusUnauthorized, "not for the audience",
		},
		{
			"two nodes in one token", answering(authenticationv1.TokenReviewStatus{Authenticated: true, Audiences: good.Audiences, User: authenticationv1.UserInfo{
				Username: good.User.Username, Extra: map[string]authenticationv1.ExtraValue{nodeNameKey: {"node-a", "node-b"}},
			}}), "",
			http.StatusUnauthorized, "not bound to a node",
		},
		{"no NodeImageSet to be read", answering(good), "NodeImageSet", http.StatusServiceUnavailable, "NodeImageSet"},
		{"no ImagePrefetch to be read", answering(good), "ImagePrefetchList", http.StatusServiceUnavailable, "ImagePrefetches"},
		{"no Secret to be read: the pull must not go on as if there were none", answering(good), "Secret", http.StatusServiceUnavailable, "Secret"},
		{"no ServiceAccount to be read", answering(good), "ServiceAccount", http.StatusServiceUnavailable, "ServiceAccount"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			var logged bytes.Buffer
			made := newHandler(t, &logged, tt.review, func(kind string) error {
				if kind == tt.failing {
					return errors.New("timeout")
				}
				return nil
			})
			response := send(made.handler, "10.0.0.1:1")
			if response.Code != tt.wantStatus {
				t.Errorf("status %d, want %d: %s", response.Code, tt.wantStatus, response.Body)
			}
			if shown := strings.Contains(response.Body.String(), "p4ssw0rd"); shown != (tt.wantStatus == http.StatusOK) {
				t.Errorf("the answer has the credentials: %t", shown)
			}
			if !strings.Contains(logged.String(), tt.wantLog) {
				t.Errorf("the log does not say %q: %s", tt.wantLog, logged.String())
			}
			for _, secret := range []string{someToken, "p4ssw0rd", "cm9ib3Q6cDRzc3cwcmQ="} {
				if strings.Contains(logged.String(), secret) {
					t.Errorf("the log has %q: %s", secret, logged.String())
				}
			}
			if n, err := testutil.GatherAndCount(made.registry, "sluice_credential_requests_total"); n != 1 || err != nil {
				t.Errorf("the request is counted in %d series, err %v", n, err)
			}
		})
	}
}

func TestTheHandlerGoesOnWithoutASecretThatItMayNotRead(t *testing.T) {
	made := newHandler(t, &bytes.Buffer{}, answering(good), func(kind string) error {
		if kind == "Secret" {
			return apierrors.NewForbidden(corev1.Resource("secrets"), "pull", errors.New("no"))
		}
		return nil
	})
	response := send(made.handler, "10.0.0.1:1")
	if response.Code != http.StatusOK || strings.TrimSpace(response.Body.String()) != `{"credentials":[]}` {
		t.Errorf("status %d: %s", response.Code, response.Body)
	}
	want := "Warning PullSecretMissing Sluice may not read Secret shop/pull; pulling goes on without it"
	select {
	case got := <-made.events:
		if got != want {
			t.Errorf("Event %q, want %q", got, want)
		}
	default:
		t.Error("no Event")
	}
}

func TestTheHandlerAnswersAFloodWithoutAskingTheAPIServer(t *testing.T) {
	reviews := 0
	handler := newHandler(t, &bytes.Buffer{}, func(*authenticationv1.TokenReview) error {
		reviews++
		return nil
	}, nil).handler
	var last *httptest.ResponseRecorder
	for range 2 * burstPerSource {
		last = send(handler, "10.0.0.1:1")
	}
	if last.Code != http.StatusTooManyRequests || last.Header().Get("Retry-After") == "" {
		t.Errorf("the last request of the flood got status %d, Retry-After %q", last.Code, last.Header().Get("Retry-After"))
	}
	if reviews > burstPerSource+ratePerSource {
		t.Errorf("%d TokenReviews", reviews)
	}
	if other := send(handler, "10.0.0.2:1"); other.Code != http.StatusUnauthorized {
		t.Errorf("another address got status %d", other.Code)
	}
}

func send(handler http.Handler, remote string) *httptest.ResponseRecorder {
	request := httptest.NewRequest(http.MethodPost, credentialapi.Path, strings.NewReader(`{"image": "ghcr.io/shop/app:v1"}`))
	request.RemoteAddr = remote
	request.Header.Set("Authorization", "Bearer "+someToken)
	response := httptest.NewRecorder()
	handler.ServeHTTP(response, request)
	return response
}

// made is a handler and what it writes to.
type made struct {
	handler  *Handler
	registry *prometheus.Registry
	events   chan string
}

// newHandler makes a handler that knows one node and one image. failing says with which
// error a kind cannot be read.
func newHandler(t testing.TB, logged *bytes.Buffer, review func(*authenticationv1.TokenReview) error, failing func(kind string) error) made {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	fails := func(object runtime.Object) error {
		if failing == nil {
			return nil
		}
		kinds, _, _ := scheme.ObjectKinds(object)
		return failing(kinds[0].Kind)
	}
	const name = "ghcr.io/shop/app:v1"
	api := fake.NewClientBuilder().WithScheme(scheme).WithObjects(
		&v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: "node-a"}, Spec: v1alpha1.NodeImageSetSpec{NodeName: "node-a", ImageSet: []v1alpha1.NodeImage{{
			Name: name, RegistryPolicy: v1alpha1.RegistryPolicyDefault,
			ImagePullSecrets: []v1alpha1.PullSecretSource{
				{Namespace: "shop", Name: "pull"}, {Kind: v1alpha1.PullSecretSourceServiceAccount, Namespace: "shop", Name: "default"},
			},
		}}}},
		&v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "other"}, Spec: v1alpha1.ImagePrefetchSpec{
			Images: []v1alpha1.ImageReference{name},
		}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "default"}},
		&v1alpha1.ImagePrefetch{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "app"}, Spec: v1alpha1.ImagePrefetchSpec{
			Images: []v1alpha1.ImageReference{name}, ImagePullSecrets: []v1alpha1.SecretReference{{Name: "pull"}},
		}},
		&corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "pull"},
			Type:       corev1.SecretTypeDockerConfigJson,
			Data:       map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths": {"ghcr.io": {"auth": "cm9ib3Q6cDRzc3cwcmQ="}}}`)},
		},
	).WithInterceptorFuncs(interceptor.Funcs{
		Create: func(_ context.Context, _ client.WithWatch, object client.Object, _ ...client.CreateOption) error {
			return review(object.(*authenticationv1.TokenReview))
		},
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, object client.Object, opts ...client.GetOption) error {
			return cmp.Or(fails(object), c.Get(ctx, key, object, opts...))
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			return cmp.Or(fails(list), c.List(ctx, list, opts...))
		},
	}).Build()
	recorder := events.NewFakeRecorder(10)
	registry := prometheus.NewRegistry()
	options := Options{Audience: credentialapi.Audience, AgentServiceAccount: "sluice-system/sluice-agent"}
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	handler := NewHandler(options, api, api, recorder, metrics, logging.Options{Format: logging.FormatJSON}.Logger(logged))
	return made{handler, registry, recorder.Events}
}
