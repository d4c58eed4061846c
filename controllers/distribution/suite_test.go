// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package distribution_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/go-logr/logr"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/apiserver"
)

var (
	server *apiserver.Server
	api    client.WithWatch // as an administrator
	scheme = runtime.NewScheme()
)

func TestControllers(t *testing.T) {
	RegisterFailHandler(Fail)
	SetDefaultEventuallyTimeout(time.Minute)
	SetDefaultEventuallyPollingInterval(10 * time.Millisecond)
	SetDefaultConsistentlyDuration(300 * time.Millisecond)
	EnforceDefaultTimeoutsWhenUsingContexts()
	RunSpecs(t, "Controllers")
}

var _ = BeforeSuite(func(ctx SpecContext) {
	ctrl.SetLogger(logr.FromSlogHandler(newLogHandler(GinkgoWriter)))
	Expect(errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme))).To(Succeed())
	var err error
	server, err = apiserver.Start()
	Expect(err).NotTo(HaveOccurred())
	DeferCleanup(func() { Expect(server.Stop()).To(Succeed()) })
	api, err = client.NewWithWatch(server.Config, client.Options{Scheme: scheme})
	Expect(err).NotTo(HaveOccurred())
	for _, object := range read("rbac") {
		Expect(api.Create(ctx, object)).To(Succeed())
	}
})

// Nodes and NodeImageSets are cluster-scoped, so each spec starts without any. The last cleanup that
// was registered runs first, so that the controllers have ended before this one.
var _ = BeforeEach(func() {
	DeferCleanup(func(ctx SpecContext) {
		for _, kind := range []client.Object{&v1alpha1.ImagePrefetch{}, &eventsv1.Event{}} {
			Expect(api.DeleteAllOf(ctx, kind, client.InNamespace("default"))).To(Succeed())
		}
		for _, kind := range []client.Object{&v1alpha1.NodeImageSet{}, &corev1.Node{}} {
			Expect(api.DeleteAllOf(ctx, kind)).To(Succeed())
		}
	})
})

// read reads the objects of a folder below config, in the order in which kubectl applies them.
func read(folder string) (objects []*unstructured.Unstructured) {
	GinkgoHelper()
	files, err := filepath.Glob(filepath.Join(server.Root, "config", folder, "*.yaml"))
	Expect(err).NotTo(HaveOccurred())
	for _, file := range files {
		data, err := os.ReadFile(file)
		Expect(err).NotTo(HaveOccurred())
		documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(data), 4096)
		for {
			object := &unstructured.Unstructured{}
			err := documents.Decode(object)
			if errors.Is(err, io.EOF) {
				break
			}
			Expect(err).NotTo(HaveOccurred(), file)
			objects = append(objects, object)
		}
	}
	Expect(objects).NotTo(BeEmpty(), folder)
	return objects
}
