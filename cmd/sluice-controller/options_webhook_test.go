// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/internal/policy"
	"github.com/sluice-dev/sluice/webhook"
)

func TestWebhookFlags(t *testing.T) {
	options, err := parse(strings.Fields("--webhook-bind-address=127.0.0.1:9443 --certificate-secret=a/tls --default-policy=Deny"))
	if err != nil {
		t.Fatal(err)
	}
	if want := (webhook.Options{BindAddress: "127.0.0.1:9443", DefaultPolicy: policy.DefaultDeny}); options.Webhook != want {
		t.Errorf("got %+v, want %+v", options.Webhook, want)
	}
	if options, err = parse(nil); err != nil || options.Webhook.BindAddress != "" || options.Webhook.DefaultPolicy != policy.DefaultAllow {
		t.Errorf("by default: %+v, %v", options.Webhook, err)
	}
}

func TestWrongWebhookFlagsAreRejectedWithWhatToWrite(t *testing.T) {
	const wrongAddress = "--webhook-bind-address must be HOST:PORT or :PORT: "
	for line, want := range map[string]string{
		"--default-policy=allow":                                       `--default-policy must be Allow or Deny, not "allow"`,
		"--webhook-bind-address=:9443":                                 "--webhook-bind-address needs --certificate-secret: webhooks are served over HTTPS only",
		"--webhook-bind-address=9443 --certificate-secret=a/tls":       wrongAddress + "address 9443: missing port in address",
		"--webhook-bind-address=:port --certificate-secret=a/tls":      wrongAddress + `strconv.ParseUint: parsing "port": invalid syntax`,
		"--webhook-bind-address=:99999999 --certificate-secret=a/tls":  wrongAddress + `strconv.ParseUint: parsing "99999999": value out of range`,
		"--default-policy=Maybe --fanout=0 --certificate-secret=a/tls": "--fanout must be 1 or more, not 0\n" + `--default-policy must be Allow or Deny, not "Maybe"`,
	} {
		_, err := parse(strings.Fields(line))
		if err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %s", line, err, want)
		}
	}
}
