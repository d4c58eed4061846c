// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package objectkey

import "testing"

func TestParse(t *testing.T) {
	if key, err := Parse("sluice-system/tls"); err != nil || key.Namespace != "sluice-system" || key.Name != "tls" {
		t.Errorf("%v, %v", key, err)
	}
	for _, text := range []string{"", "tls", "/tls", "sluice-system/", "a/b/c"} {
		if _, err := Parse(text); err == nil || err.Error() != `must be NAMESPACE/NAME, not "`+text+`"` {
			t.Errorf("%q: %v", text, err)
		}
	}
}
