// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package excerpt cuts text to the lengths that fields of the API allow.
package excerpt

import "unicode/utf8"

const ellipsis = "…"

// Of returns text if it has at most limit bytes. A longer one is cut between two characters,
// and ends in an ellipsis; the result has at most limit bytes. A limit below the three bytes
// of the ellipsis leaves nothing of a longer text.
func Of(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	end := limit - len(ellipsis)
	if end < 0 {
		return ""
	}
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + ellipsis
}
