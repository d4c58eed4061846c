// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
)

// complaint is the first error that containerd's code logs. It goes on without a hosts.toml that it
// does not accept, and says why in its log only.
type complaint struct{ err error }

// listen returns a context in which containerd's code logs to the complaint alone.
func listen(ctx context.Context) (context.Context, *complaint) {
	heard, logger := &complaint{}, logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(heard)
	return log.WithLogger(ctx, logrus.NewEntry(logger)), heard
}

// Levels implements logrus.Hook.
func (c *complaint) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

// Fire implements logrus.Hook.
func (c *complaint) Fire(entry *logrus.Entry) error {
	err, ok := entry.Data[logrus.ErrorKey].(error)
	if !ok || c.err != nil {
		return nil
	}
	c.err = err
	if at := (*toml.DecodeError)(nil); errors.As(err, &at) {
		line, _ := at.Position()
		c.err = fmt.Errorf("line %d: %w", line, err)
	}
	return nil
}
