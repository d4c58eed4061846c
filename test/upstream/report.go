// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// Report prints a table for people: per content how often it was fetched, how
// many bytes that took, and by whom. names gives clients other names than
// their addresses; it may be nil.
func (r Requests) Report(w io.Writer, names map[string]string) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CONTENT\tDIGEST\tSIZE\tFETCHED\tIN PART\tBYTES SENT\tBY")
	var content, sent int64
	for _, t := range r.Tallies() {
		by := make([]string, len(t.Clients))
		for i, client := range t.Clients {
			by[i] = cmp.Or(names[client], client)
		}
		_, hex, _ := strings.Cut(t.Digest, ":")
		fmt.Fprintf(table, "%s\t%.12s\t%s\t%d\t%d\t%s\t%s\n",
			t.role(), hex, binary(t.Size), t.Complete, t.Partial, binary(t.Bytes), strings.Join(by, " "))
		sent += t.Bytes
		if t.Bytes > 0 {
			content += t.Size
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "%s sent for %s of content, in %d requests by %d clients\n", binary(sent), binary(content), len(r), len(r.Clients()))
	return err
}

// binary prints a size with the unit that leaves less than four digits.
func binary(bytes int64) string {
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value, unit := float64(bytes)/1024, 0
	for ; value >= 1024; unit++ {
		value /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGT"[unit])
}
