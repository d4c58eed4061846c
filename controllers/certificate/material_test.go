// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"
)

var (
	start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	names = []string{"sluice-controller.sluice-system.svc", "sluice-controller.sluice-system.svc.cluster.local"}
)

const day = 24 * time.Hour

func mustRenew(t *testing.T, m material, now time.Time, names ...string) material {
	t.Helper()
	next, err := m.renewed(now, names)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func mustParse(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		t.Fatal("no PEM")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// trusted reports whether a client with the CA of one accepts the certificate of the other.
func trusted(t *testing.T, ca, leaf material, at time.Time) bool {
	t.Helper()
	return serves(mustParse(t, leaf[leafCertKey]), mustParse(t, ca[caCertKey]), names, at)
}

func TestRenewed(t *testing.T) {
	first := mustRenew(t, nil, start, names...)
	if !trusted(t, first, first, start) || !trusted(t, first, first, start.Add(leafLifetime-time.Minute)) {
		t.Fatal("the first certificate does not serve")
	}
	aged := mustRenew(t, first, start.Add(caLifetime-366*day), names...)
	for _, tt := range []struct {
		reason           string
		present          material
		after            time.Duration
		names            []string
		newLeaf, newCA   bool
		newLeafKey, keep bool // keep: old and new trust each other
	}{
		{reason: "all is well", present: first, after: 59 * day, keep: true},
		{reason: "the certificate ends in less than 30 days", present: first, after: 61 * day, newLeaf: true, newLeafKey: true, keep: true},
		{reason: "the Service has another name", present: first, after: day, names: []string{"other.svc"}, newLeaf: true, newLeafKey: true},
		{reason: "the CA ends in less than a year: it is renewed with its key", present: aged, after: caLifetime - 360*day, newCA: true, keep: true},
		{reason: "nothing is there", present: nil, newLeaf: true, newLeafKey: true, newCA: true},
		{
			reason:  "what is there is no certificate",
			present: material{caCertKey: []byte("x"), caKeyKey: []byte("y"), leafCertKey: []byte("z")},
			newLeaf: true, newLeafKey: true, newCA: true,
		},
		{
			reason:  "the CA's key is missing, as in a Secret of cert-manager's",
			present: material{caCertKey: first[caCertKey], leafCertKey: first[leafCertKey], leafKeyKey: first[leafKeyKey]},
			newLeaf: true, newLeafKey: true, newCA: true,
		},
		{
			reason: "the certificate's key is that of the CA",
			present: material{
				caCertKey: first[caCertKey], caKeyKey: first[caKeyKey], leafCertKey: first[leafCertKey], leafKeyKey: first[caKeyKey],
			},
			newLeaf: true, newLeafKey: true,
		},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			if tt.names == nil {
				tt.names = names
			}
			now := start.Add(tt.after)
			next := mustRenew(t, tt.present, now, tt.names...)
			for key, want := range map[string]bool{caCertKey: tt.newCA, leafCertKey: tt.newLeaf, leafKeyKey: tt.newLeafKey} {
				if changed := string(next[key]) != string(tt.present[key]); changed != want {
					t.Errorf("%s changed: %t, want %t", key, changed, want)
				}
			}
			if !serves(mustParse(t, next[leafCertKey]), mustParse(t, next[caCertKey]), tt.names, now.Add(leafRenewBefore)) {
				t.Error("the result does not serve for another 30 days")
			}
			if tt.keep && (!trusted(t, tt.present, next, now) || !trusted(t, next, tt.present, now)) {
				t.Error("old and new do not trust each other")
			}
			if again := mustRenew(t, next, now.Add(time.Minute), tt.names...); !again.equal(next) {
				t.Error("it is renewed again a minute later")
			}
		})
	}
}

func TestCAOnlySigns(t *testing.T) {
	ca := mustParse(t, mustRenew(t, nil, start, names...)[caCertKey])
	if !ca.IsCA || ca.KeyUsage != x509.KeyUsageCertSign || len(ca.DNSNames) > 0 {
		t.Errorf("the CA is %+v", ca)
	}
}
