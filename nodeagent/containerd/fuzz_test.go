// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FuzzManifest reads what a registry or a mirror calls a manifest.
func FuzzManifest(f *testing.F) {
	for _, text := range []string{
		"", "null", "[]", "{}", `{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}`,
		`{"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 9000000}}`,
		`{"schemaVersion": 1, "signatures": [{"protected": "e30"}]}`, `{"schemaVersion": 1, "signatures": [{"protected": "` +
			base64.RawURLEncoding.EncodeToString([]byte(`{"formatLength": -1, "formatTail": "fQ"}`)) + `"}]}`,
		`{"config": null}`, `{"manifests": null}`, `{"mediaType": 3}`, "\xff\xfe",
	} {
		f.Add([]byte(text), "application/json", `{"formatLength": 3, "formatTail": "fQ"}`)
	}
	f.Fuzz(func(t *testing.T, raw []byte, served, header string) {
		// What is no JSON object is no manifest, whatever its server says.
		if kind := mediaType(raw, served); kind != "" {
			var object map[string]json.RawMessage
			if err := json.Unmarshal(raw, &object); err != nil {
				t.Errorf("%q is taken for a manifest of the type %q: %v", raw, kind, err)
			}
		}
		var manifest ocispec.Manifest
		if json.Unmarshal(raw, &manifest) == nil && checkRunnable(manifest) == nil && manifest.Config.Size > maxInMemory {
			t.Errorf("a config of %d bytes would be read into memory", manifest.Config.Size)
		}

		// A signature adds a tail that its header has, and nothing else.
		if part := signedPart(raw, base64.RawURLEncoding.EncodeToString([]byte(header))); len(part) > len(raw)+len(header) {
			t.Errorf("of %d bytes and a header of %d, %d were signed", len(raw), len(header), len(part))
		}
		isSchema1(raw, digest.FromBytes(raw))
		signed := fmt.Appendf(nil, `{"schemaVersion": 1, "x": %q`, served)
		format := fmt.Sprintf(`{"formatLength": %d, "formatTail": "fQ"}`, len(signed))
		named := digest.FromString(string(signed) + "}")
		whole := fmt.Appendf(signed, `, "signatures": [{"protected": %q}]}`, base64.RawURLEncoding.EncodeToString([]byte(format)))
		if json.Valid(whole) && !isSchema1(whole, named) {
			t.Errorf("a signed manifest of schema 1 is not known for one: %s", whole)
		}
	})
}
