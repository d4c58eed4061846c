// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	. "github.com/onsi/ginkgo/v2"
	. "github.com/onsi/gomega"
	"github.com/opencontainers/go-digest"

	"github.com/sluice-dev/sluice/api/v1alpha1"
	"github.com/sluice-dev/sluice/internal/imageref"
	"github.com/sluice-dev/sluice/nodeagent"
)

// schema1 and schema1Tail are a manifest of Docker's schema 1. Signatures stand between the two.
const (
	schema1     = `{"schemaVersion": 1, "name": "team/old", "tag": "v1", "architecture": "amd64", "fsLayers": [], "history": []`
	schema1Tail = "\n}"
)

func signedSchema1() string {
	encode := base64.RawURLEncoding.EncodeToString
	header := fmt.Sprintf(`{"formatLength": %d, "formatTail": %q}`, len(schema1), encode([]byte(schema1Tail)))
	return fmt.Sprintf(`%s, "signatures": [{"signature": "c2lnbmVk", "protected": %q}]%s`, schema1, encode([]byte(header)), schema1Tail)
}

var _ = Describe("An image of Docker's schema 1", func() {
	for _, policy := range []v1alpha1.RegistryPolicy{seed, peer} {
		DescribeTable("is refused in words, and asked for once: "+string(policy),
			func(ctx context.Context, mediaType, manifest string) {
				named := digest.FromString(schema1 + schema1Tail)
				var asked atomic.Int32
				server := listenOnGateway(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if !strings.Contains(r.URL.Path, "/manifests/") {
						http.NotFound(w, r)
						return
					}
					asked.Add(1)
					w.Header().Set("Content-Type", mediaType)
					w.Header().Set("Docker-Content-Digest", named.String())
					w.Header().Set("Content-Length", strconv.Itoa(len(manifest)))
					_, _ = w.Write([]byte(manifest))
				}))
				req := nodeagent.PullRequest{Policy: policy}
				registry := strings.TrimPrefix(server, "http://")
				if policy == peer {
					registry, req.Digest = "registry.invalid", named
				}
				hosts(registry, "[host.%q]\n", server)
				var err error
				req.Ref, err = imageref.Parse(registry + "/team/old:v1")
				Expect(err).NotTo(HaveOccurred())

				_, err = pull(ctx, start(options()), req)
				Expect(err).To(MatchError(nodeagent.ErrImageInvalid))
				Expect(err).To(MatchError(ContainSubstring("push the image again with a current client")))
				Expect(asked.Load()).To(BeEquivalentTo(1))
			},
			Entry("signed", "application/vnd.docker.distribution.manifest.v1+prettyjws", signedSchema1(), SpecTimeout(specTimeout)),
			Entry("signed, from a registry that states no type", "text/plain", signedSchema1(), SpecTimeout(specTimeout)),
			Entry("not signed", "application/vnd.docker.distribution.manifest.v1+json", schema1+schema1Tail, SpecTimeout(specTimeout)),
		)
	}
})
