// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package credentials

import (
	"errors"

	"github.com/sluice-dev/sluice/internal/credentialapi"
)

// denial is an answer without credentials.
type denial struct {
	status int
	body   credentialapi.Error
	// detail is for the log: it may say more than the caller is told, but holds no token.
	detail string
	// node is empty until the token is known to be good.
	node string
}

func deny(status int, reason credentialapi.Reason, message string) *denial {
	return &denial{status: status, body: credentialapi.Error{Reason: reason, Message: message}, detail: message}
}

// withDetail replaces the text for the log.
func (d *denial) withDetail(detail string) *denial {
	d.detail = detail
	return d
}

// Error is the text for the log.
func (d *denial) Error() string { return d.detail }

// forNode names the node in an error that is a denial.
func forNode(node string, err error) error {
	var denied *denial
	if errors.As(err, &denied) {
		denied.node = node
	}
	return err
}
