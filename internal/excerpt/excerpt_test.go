// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package excerpt_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/sluice-dev/sluice/internal/excerpt"
)

func TestOf(t *testing.T) {
	for _, tt := range []struct {
		because, text string
		limit         int
		want          string
	}{
		{"a text that fits stays as it is", "abcdef", 6, "abcdef"},
		{"an empty one fits everywhere", "", 0, ""},
		{"the ellipsis counts as three bytes", "abcdef", 5, "ab…"},
		{"a character of two bytes is left out as a whole", "aäöü", 6, "aä…"},
		{"a character before the limit stays", "äöü!", 5, "ä…"},
		{"a character of four bytes is left out as a whole", "😀😀", 6, "…"},
		{"the ellipsis alone fits into three bytes", "abcdef", 3, "…"},
		{"less than an ellipsis holds nothing", "abcdef", 2, ""},
		{"no room holds nothing", "abcdef", 0, ""},
		{"bytes that are no characters have no place to be cut at", "\x80\x80\x80\x80\x80", 4, "…"},
	} {
		t.Run(tt.because, func(t *testing.T) {
			if got := excerpt.Of(tt.text, tt.limit); got != tt.want {
				t.Errorf("Of(%q, %d) = %q, want %q", tt.text, tt.limit, got, tt.want)
			}
		})
	}
}

func FuzzOf(f *testing.F) {
	f.Add(strings.Repeat("ü", 1024), 1000)
	f.Add("😀", 3)
	f.Fuzz(func(t *testing.T, text string, limit int) {
		if limit < 0 {
			return
		}
		got := excerpt.Of(text, limit)
		if len(got) > limit {
			t.Errorf("Of(%q, %d) has %d bytes", text, limit, len(got))
		}
		if utf8.ValidString(text) && !utf8.ValidString(got) {
			t.Errorf("Of(%q, %d) = %q, which is cut through a character", text, limit, got)
		}
		if len(text) <= limit && got != text {
			t.Errorf("Of(%q, %d) = %q, though it fits", text, limit, got)
		}
	})
}
