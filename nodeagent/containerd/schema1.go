// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/nodeagent"
)

// errSchema1: the image has a manifest as clients before Docker 1.10 pushed it.
var errSchema1 = fmt.Errorf("%w: it is of Docker's schema 1, which containerd no longer pulls: push the image again with a current client",
	nodeagent.ErrImageInvalid)

// schema1Text is how containerd refuses such a manifest as an image, one without a digest, and one in an
// index; and how it names one that has no signature, which it looks for among the blobs in vain. There
// is no error value for any of them.
var schema1Text = regexp.MustCompile(`schema 1 image manifests are no longer supported|` +
	`manifest\.v1\+prettyjws"? (is no longer|not) supported|` +
	`\(application/vnd\.docker\.distribution\.manifest\.v1\+json\) from remote`)

// isSchema1 reports whether raw is the manifest of Docker's schema 1 that the digest names. The digest
// of a signed one is that of what was signed. So it looks like something else, and never stops doing so.
func isSchema1(raw []byte, dgst digest.Digest) bool {
	var manifest struct {
		SchemaVersion int `json:"schemaVersion"`
		Signatures    []struct {
			Protected string `json:"protected"`
		} `json:"signatures"`
	}
	if json.Unmarshal(raw, &manifest) != nil || manifest.SchemaVersion != 1 {
		return false
	}
	if len(manifest.Signatures) > 0 {
		raw = signedPart(raw, manifest.Signatures[0].Protected)
	}
	return dgst.Algorithm().FromBytes(raw) == dgst
}

// signedPart is the manifest without its signatures: what stands before them, whose length the header of
// each signature has, and what came after. It is nil if the header says nothing of the kind.
func signedPart(manifest []byte, header string) []byte {
	raw, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		return nil
	}
	var format struct {
		Length int    `json:"formatLength"`
		Tail   string `json:"formatTail"`
	}
	if json.Unmarshal(raw, &format) != nil || format.Length < 0 || format.Length > len(manifest) {
		return nil
	}
	tail, err := base64.RawURLEncoding.DecodeString(format.Tail)
	if err != nil {
		return nil
	}
	return slices.Concat(manifest[:format.Length], tail)
}
