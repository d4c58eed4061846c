// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package objectkey parses the names of objects in flags.
package objectkey

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Parse parses NAMESPACE/NAME.
func Parse(text string) (types.NamespacedName, error) {
	namespace, name, ok := strings.Cut(text, "/")
	if !ok || namespace == "" || name == "" || strings.Contains(name, "/") {
		return types.NamespacedName{}, fmt.Errorf("must be NAMESPACE/NAME, not %q", text)
	}
	return types.NamespacedName{Namespace: namespace, Name: name}, nil
}
