// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package installation_test

import (
	"context"
	"io/fs"
	"strings"
	"testing/fstest"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/config/crd"
	"github.com/sluice-dev/sluice/controllers/installation"
	"github.com/sluice-dev/sluice/nodeagent"
)

const old = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: valves.example.org
  annotations: {tool: "1"}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: Valve, listKind: ValveList, plural: valves, singular: valve}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          width: {type: integer}
`

var _ = Describe("ApplyCRDs", func() {
	valves := func() *apiextensionsv1.CustomResourceDefinition {
		return &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "valves.example.org"}}
	}
	files := func(text string) fs.FS {
		return fstest.MapFS{"valves.yaml": {Data: []byte(text)}, "embed.go": {Data: []byte("package crd")}}
	}

	It("creates a definition, and replaces its spec by that of a new version", func(ctx SpecContext) {
		Expect(installation.ApplyCRDs(ctx, api, files(old))).To(Succeed())
		definition := valves()
		DeferCleanup(func(ctx SpecContext) { Expect(api.Delete(ctx, valves())).To(Succeed()) })
		note := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"annotations":{"owner":"somebody"}}}`))
		Expect(api.Patch(ctx, definition, note)).To(Succeed())

		next := strings.NewReplacer("width", "height", `tool: "1"`, `tool: "2"`).Replace(old)
		Expect(installation.ApplyCRDs(ctx, api, files(next))).To(Succeed())

		refresh(ctx, definition)
		Expect(definition.Spec.Versions[0].Schema.OpenAPIV3Schema.Properties).To(And(HaveKey("height"), Not(HaveKey("width"))))
		Expect(definition.Annotations).To(And(HaveKeyWithValue("tool", "2"), HaveKeyWithValue("owner", "somebody")))
	})

	It("writes nothing where nothing differs", func(ctx SpecContext) {
		Expect(installation.ApplyCRDs(ctx, api, crd.Files)).To(Succeed())
		before := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "imageprefetches.sluice.dev"}}
		refresh(ctx, before)
		Expect(installation.ApplyCRDs(ctx, api, crd.Files)).To(Succeed())
		after := before.DeepCopy()
		refresh(ctx, after)
		Expect(after.ResourceVersion).To(Equal(before.ResourceVersion))
	})

	It("makes lists atomic that had keys, with what is stored in them", func(ctx SpecContext) {
		Expect(installation.ApplyCRDs(ctx, api, crd.Files)).To(Succeed())
		definition := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "nodeimagesets.sluice.dev"}}
		refresh(ctx, definition)
		schema := definition.Spec.Versions[0].Schema.OpenAPIV3Schema
		for part, list := range map[string]string{"spec": "imageSet", "status": "images"} {
			images := schema.Properties[part].Properties[list]
			Expect(images.XListType).To(HaveValue(Equal("atomic")), list)
			images.XListType, images.XListMapKeys = ptr.To("map"), []string{"name"}
			schema.Properties[part].Properties[list] = images
		}
		Expect(api.Update(ctx, definition)).To(Succeed())
		takesTwice := func(ctx context.Context) error {
			return api.Create(ctx, imageSet("twice", "app:v1", "app:v1"), client.DryRunAll)
		}
		Eventually(takesTwice).WithContext(ctx).Should(MatchError(ContainSubstring("Duplicate value")))

		set := imageSet("one", "app:v1", "app:v2")
		Expect(api.Create(ctx, set)).To(Succeed())
		DeferCleanup(func(ctx SpecContext) { Expect(api.Delete(ctx, imageSet("one"))).To(Succeed()) })
		agent := nodeagent.NewStatusWriter(api, "one")
		Expect(agent.WriteStatus(ctx, set.UID, reported(v1alpha1.ImagePulling, "app:v1", "app:v2"))).To(Succeed())
		Expect(trackedEntries(ctx, set)).To(BeNumerically(">", 0))

		Expect(installation.ApplyCRDs(ctx, api, crd.Files)).To(Succeed())
		Eventually(takesTwice).WithContext(ctx).Should(Succeed())
		set.Spec.ImageSet = set.Spec.ImageSet[1:]
		Expect(api.Update(ctx, set)).To(Succeed())
		Expect(agent.WriteStatus(ctx, set.UID, reported(v1alpha1.ImagePresent, "app:v2"))).To(Succeed())
		Expect(trackedEntries(ctx, set)).To(BeZero())
		Expect(set.Spec.ImageSet).To(HaveExactElements(HaveField("Name", "app:v2")))
		Expect(set.Status.Images).To(HaveExactElements(And(HaveField("Name", "app:v2"), HaveField("State", v1alpha1.ImagePresent))))
	})

	It("names the definition that the API server rejects", func(ctx SpecContext) {
		err := installation.ApplyCRDs(ctx, api, files(strings.Replace(old, "plural: valves", "plural: taps", 1)))
		Expect(err).To(MatchError(ContainSubstring(`apply CustomResourceDefinition "valves.example.org"`)))
	})
})

func imageSet(node string, images ...string) *v1alpha1.NodeImageSet {
	set := &v1alpha1.NodeImageSet{ObjectMeta: metav1.ObjectMeta{Name: node}, Spec: v1alpha1.NodeImageSetSpec{NodeName: node}}
	for _, image := range images {
		set.Spec.ImageSet = append(set.Spec.ImageSet, v1alpha1.NodeImage{Name: image})
	}
	return set
}

func reported(state v1alpha1.ImageState, images ...string) (status v1alpha1.NodeImageSetStatus) {
	for _, image := range images {
		status.Images = append(status.Images, v1alpha1.NodeImageStatus{Name: image, State: state})
	}
	return status
}

// trackedEntries reads an object, and counts the entries of lists that have an owner of their own.
func trackedEntries(ctx context.Context, set *v1alpha1.NodeImageSet) (count int) {
	GinkgoHelper()
	refresh(ctx, set)
	for _, manager := range set.ManagedFields {
		count += strings.Count(string(manager.FieldsV1.GetRawBytes()), `k:{\"name\"`)
	}
	return count
}
