// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/sha1" // SPDX 2.3 asks for it (8.4); nothing relies on it
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// The parts of SPDX 2.3 (https://spdx.github.io/spdx-spec/v2.3/) that are written.
type (
	spdxDocument struct {
		SPDXVersion       string             `json:"spdxVersion"`
		DataLicense       string             `json:"dataLicense"`
		SPDXID            string             `json:"SPDXID"`
		Name              string             `json:"name"`
		DocumentNamespace string             `json:"documentNamespace"`
		CreationInfo      spdxCreationInfo   `json:"creationInfo"`
		Packages          []spdxPackage      `json:"packages"`
		Files             []spdxFile         `json:"files"`
		Relationships     []spdxRelationship `json:"relationships"`
	}
	spdxCreationInfo struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		SPDXID           string             `json:"SPDXID"`
		Name             string             `json:"name"`
		Version          string             `json:"versionInfo"`
		DownloadLocation string             `json:"downloadLocation"`
		FilesAnalyzed    bool               `json:"filesAnalyzed"`
		LicenseConcluded string             `json:"licenseConcluded"`
		LicenseDeclared  string             `json:"licenseDeclared"`
		CopyrightText    string             `json:"copyrightText"`
		SourceInfo       string             `json:"sourceInfo,omitempty"`
		ExternalRefs     []spdxExternalRefs `json:"externalRefs"`
	}
	spdxExternalRefs struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxFile struct {
		SPDXID           string         `json:"SPDXID"`
		Name             string         `json:"fileName"`
		Checksums        []spdxChecksum `json:"checksums"`
		LicenseConcluded string         `json:"licenseConcluded"`
		CopyrightText    string         `json:"copyrightText"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxRelationship struct {
		Element string `json:"spdxElementId"`
		Type    string `json:"relationshipType"`
		Related string `json:"relatedSpdxElement"`
	}
)

const (
	noAssertion = "NOASSERTION"
	documentID  = "SPDXRef-DOCUMENT"
)

// billOfMaterials lists the modules that the Go linker recorded in the binary. It is
// a file of the image rather than a referrer of it, so that it is covered by the
// image's digest and goes wherever the image is copied, also into registries and
// archives that know no referrers.
func billOfMaterials(name string, source source, platform v1.Platform, binary []byte, info *debug.BuildInfo) ([]byte, error) {
	sum := fmt.Sprintf("%x", sha256.Sum256(binary))
	main := goPackage(info.Main.Path, source.version, "")
	main.LicenseConcluded, main.LicenseDeclared = "Apache-2.0", "Apache-2.0"
	main.SourceInfo = "git commit " + source.revision
	binaryFile := spdxFile{
		SPDXID: "SPDXRef-File-" + name,
		Name:   "./" + name,
		Checksums: []spdxChecksum{
			{"SHA1", fmt.Sprintf("%x", sha1.Sum(binary))},
			{"SHA256", sum},
		},
		LicenseConcluded: noAssertion,
		CopyrightText:    noAssertion,
	}
	document := spdxDocument{
		SPDXVersion:       "SPDX-2.3",
		DataLicense:       "CC0-1.0",
		SPDXID:            documentID,
		Name:              name + "-" + source.version + "-" + platform.Architecture,
		DocumentNamespace: "https://sluice.dev/spdx/" + name + "-" + sum,
		CreationInfo: spdxCreationInfo{
			Created:  source.date.Format("2006-01-02T15:04:05Z"),
			Creators: []string{"Organization: The Sluice Authors", "Tool: hack/images"},
		},
		Packages: []spdxPackage{main},
		Files:    []spdxFile{binaryFile},
		Relationships: []spdxRelationship{
			{documentID, "DESCRIBES", main.SPDXID},
			{binaryFile.SPDXID, "GENERATED_FROM", main.SPDXID},
		},
	}
	dependencies := []spdxPackage{goPackage("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "")}
	for _, module := range info.Deps {
		if module.Replace != nil {
			module = module.Replace
		}
		dependencies = append(dependencies, goPackage(module.Path, module.Version, module.Sum))
	}
	for _, dependency := range dependencies {
		document.Packages = append(document.Packages, dependency)
		document.Relationships = append(document.Relationships, spdxRelationship{main.SPDXID, "DEPENDS_ON", dependency.SPDXID})
	}
	return json.MarshalIndent(document, "", "  ")
}

// notInSPDXID are the characters that an SPDX identifier may not have.
var notInSPDXID = regexp.MustCompile(`[^a-zA-Z0-9.-]+`)

func goPackage(path, version, sum string) spdxPackage {
	p := spdxPackage{
		SPDXID:           "SPDXRef-Package-" + notInSPDXID.ReplaceAllString(path, "-"),
		Name:             path,
		Version:          version,
		DownloadLocation: noAssertion,
		LicenseConcluded: noAssertion,
		LicenseDeclared:  noAssertion,
		CopyrightText:    noAssertion,
		// A version such as v1.0.0+incompatible has a plus, which a purl escapes.
		ExternalRefs: []spdxExternalRefs{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")}},
	}
	if sum != "" {
		p.SourceInfo = "go.sum " + sum
	}
	return p
}
