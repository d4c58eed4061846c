// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package installation_test

import (
	"io/fs"
	"strings"
	"testing/fstest"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/config/crd"
	"github.com/sluice-dev/sluice/controllers/installation"
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

	It("names the definition that the API server rejects", func(ctx SpecContext) {
		err := installation.ApplyCRDs(ctx, api, files(strings.Replace(old, "plural: valves", "plural: taps", 1)))
		Expect(err).To(MatchError(ContainSubstring(`apply CustomResourceDefinition "valves.example.org"`)))
	})
})
