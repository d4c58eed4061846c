// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package logging gives the programs the same flags for logs, and lines of the same shape.
//
// A line has time, level (INFO, DEBUG or ERROR), msg and what the call adds; logger, if the logger
// has a name; and err, if there is an error. What is logged at V(1) or above has the level DEBUG.
package logging

import (
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
)

const (
	// FormatJSON is one JSON object a line.
	FormatJSON = "json"
	// FormatText is one line of key=value pairs.
	FormatText = "text"
)

// Options say what is logged and in which format.
type Options struct {
	// Format is FormatJSON or FormatText.
	Format string
	// Verbosity is the highest V level that is logged.
	Verbosity int
}

// AddFlags adds the flags of logging, with their defaults.
func (o *Options) AddFlags(flags *pflag.FlagSet) {
	flags.StringVar(&o.Format, "log-format", FormatJSON, "json or text")
	flags.IntVarP(&o.Verbosity, "verbosity", "v", 0,
		"what is logged: 0 changes of state, 1 the decisions of each pass as well, 2 each request as well")
}

// Validate returns an error that names every flag that is wrong, and what it should be.
func (o Options) Validate() error {
	var problems []error
	if o.Format != FormatJSON && o.Format != FormatText {
		problems = append(problems, fmt.Errorf("--log-format must be %s or %s, not %q", FormatJSON, FormatText, o.Format))
	}
	if o.Verbosity < 0 {
		problems = append(problems, fmt.Errorf("--verbosity must be 0 or more, not %d", o.Verbosity))
	}
	return errors.Join(problems...)
}

// Logger writes to w one line for each record.
func (o Options) Logger(w io.Writer) logr.Logger {
	options := &slog.HandlerOptions{
		Level:       slog.Level(-o.Verbosity), // logr's V(n) is slog's level -n
		ReplaceAttr: nameLevel,
	}
	if o.Format == FormatText {
		return logr.FromSlogHandler(slog.NewTextHandler(w, options))
	}
	return logr.FromSlogHandler(slog.NewJSONHandler(w, options))
}

// nameLevel writes DEBUG for levels that slog would call DEBUG+3, by which nobody searches.
func nameLevel(groups []string, attr slog.Attr) slog.Attr {
	level, ok := attr.Value.Any().(slog.Level)
	if len(groups) == 0 && attr.Key == slog.LevelKey && ok && level < slog.LevelInfo {
		attr.Value = slog.StringValue(slog.LevelDebug.String())
	}
	return attr
}
