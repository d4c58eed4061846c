// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"context"
	"os"
	"path/filepath"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/test/images"
	"github.com/sluice-dev/sluice/test/upstream"
)

// inTheMiddle does something that replaces all of Sluice's Pods, while a Deployment is
// held for an image that is on its way, and expects neither to be lost.
func inTheMiddle(ctx context.Context, name string, act func()) {
	GinkgoHelper()
	image := push(ctx, "team/"+name+":v1", 4*images.MiB)
	// It would take four minutes, and act takes one.
	site.Upstream.SetRate(64 * images.KiB)
	DeferCleanup(func() { site.Upstream.SetRate(0) })
	held := createGated(ctx, name, name, image, 1)
	create(ctx, newPrefetch(name, image))
	requests := func() upstream.Requests { return site.Upstream.Requests().Where(upstream.In("team/" + name)) }
	Eventually(requests).ShouldNot(BeEmpty())
	since, before := held.Annotations[v1alpha1.HeldAtAnnotation], names(pods(ctx, "agent"), pods(ctx, "controller"))

	act()

	Eventually(func() []string { return names(pods(ctx, "agent"), pods(ctx, "controller")) }).ShouldNot(ContainElement(BeElementOf(before)))
	prefetch := newPrefetch(name)
	refresh(ctx, held, prefetch)
	Expect(meta.IsStatusConditionTrue(prefetch.Status.Conditions, v1alpha1.ConditionReady)).To(BeFalse(), "it is still the middle")
	Expect(held.Spec.Paused).To(BeTrue())
	Expect(held.Labels).To(HaveKey(v1alpha1.HoldLabel))
	Expect(held.Annotations).To(HaveKeyWithValue(v1alpha1.HeldAtAnnotation, since))

	site.Upstream.SetRate(0)
	eventuallyPrefetched(ctx, name)
	eventuallyReleased(ctx, held)
	eventuallyAvailable(ctx, held)
	for _, blob := range requests().Tallies() {
		// One that the replaced agent of the seed was pulling is asked for again.
		Expect(blob.Bytes).To(BeNumerically("<", 2*blob.Size), "%+v", blob)
	}
}

// previousChart is the chart as an older version of it might have been: its CRDs
// lack a column.
func previousChart() string {
	GinkgoHelper()
	dir := filepath.Join(GinkgoT().TempDir(), "sluice")
	Expect(os.CopyFS(dir, os.DirFS(site.Chart))).To(Succeed())
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
	Expect(site.Client.Get(ctx, client.ObjectKey{Name: "imageprefetches.sluice.dev"}, &definition)).To(Succeed())
	for _, column := range definition.Spec.Versions[0].AdditionalPrinterColumns {
		columns = append(columns, column.Name)
	}
	return columns
}
