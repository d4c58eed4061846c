// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// Lifetimes of certificates, and how long before their end they are renewed. The chart asks
// cert-manager for the same.
const (
	caLifetime      = 10 * 365 * 24 * time.Hour
	caRenewBefore   = 365 * 24 * time.Hour
	leafLifetime    = 90 * 24 * time.Hour
	leafRenewBefore = 30 * 24 * time.Hour
	// skew is how far the clocks of two machines may differ.
	skew = 5 * time.Minute
)

// Keys of the Secret, as cert-manager names them, and one for the CA's key. The ConfigMap has the first.
const (
	caCertKey   = "ca.crt"
	caKeyKey    = "ca.key"
	leafCertKey = "tls.crt"
	leafKeyKey  = "tls.key"
)

// certificateBlock is the type of a certificate's block in PEM.
const certificateBlock = "CERTIFICATE"

// material is the content of the Secret, in PEM.
type material map[string][]byte

// renewed returns the content that the Secret should have at the given time. It keeps each part that
// is still valid for the names, and makes the others again.
//
// A CA is renewed with its key. So clients that have the old CA certificate and clients that have
// the new one both accept every certificate that the CA signed, and may learn of the renewal in any
// order.
func (m material) renewed(now time.Time, names []string) (material, error) {
	ca, caKey, err := parsePair(m[caCertKey], m[caKeyKey])
	switch {
	case err != nil: // there is no CA, or it cannot be used
		if caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
		ca = nil
	case now.After(ca.NotAfter.Add(-caRenewBefore)):
		ca = nil
	}
	next := material{caCertKey: m[caCertKey], caKeyKey: m[caKeyKey], leafCertKey: m[leafCertKey], leafKeyKey: m[leafKeyKey]}
	if ca == nil {
		template := &x509.Certificate{
			Subject:               pkix.Name{CommonName: "sluice-ca"},
			NotAfter:              now.Add(caLifetime),
			IsCA:                  true,
			BasicConstraintsValid: true,
			KeyUsage:              x509.KeyUsageCertSign,
		}
		if next[caCertKey], ca, err = sign(now, template, template, caKey, caKey); err != nil {
			return nil, fmt.Errorf("make the CA: %w", err)
		}
		if next[caKeyKey], err = encodeKey(caKey); err != nil {
			return nil, err
		}
	}
	leaf, _, err := parsePair(m[leafCertKey], m[leafKeyKey])
	if err == nil && serves(leaf, ca, names, now.Add(leafRenewBefore)) {
		return next, nil
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: names[0]},
		DNSNames:    names,
		NotAfter:    now.Add(leafLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if next[leafCertKey], _, err = sign(now, template, ca, leafKey, caKey); err != nil {
		return nil, fmt.Errorf("make the certificate: %w", err)
	}
	next[leafKeyKey], err = encodeKey(leafKey)
	return next, err
}

// serves reports whether clients that trust the CA accept the certificate for all names.
func serves(leaf, ca *x509.Certificate, names []string, at time.Time) bool {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return !slices.ContainsFunc(names, func(name string) bool {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
		return err != nil
	})
}

// pair is the certificate to serve with.
func (m material) pair() (*tls.Certificate, error) {
	if len(certificates(m[caCertKey])) == 0 {
		return nil, fmt.Errorf("there is no certificate in %s: the issuer must put its CA there", caCertKey)
	}
	pair, err := tls.X509KeyPair(m[leafCertKey], m[leafKeyKey])
	return &pair, err
}

// equal reports whether both have the same content.
func (m material) equal(other material) bool {
	for _, key := range []string{caCertKey, caKeyKey, leafCertKey, leafKeyKey} {
		if !bytes.Equal(m[key], other[key]) {
			return false
		}
	}
	return true
}

func sign(now time.Time, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) ([]byte, *x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = now.Add(-skew)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		return nil, nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: der}), certificate, err
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parsePair parses a certificate and its key.
func parsePair(certificate, key []byte) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(certificate)
	keyBlock, _ := pem.Decode(key)
	if block == nil || keyBlock == nil {
		return nil, nil, errors.New("not PEM")
	}
	parsed, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, nil, err
	}
	parsedKey, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, nil, err
	}
	ecKey, ok := parsedKey.(*ecdsa.PrivateKey)
	if !ok || !ecKey.PublicKey.Equal(parsed.PublicKey) {
		return nil, nil, errors.New("certificate and key do not belong together")
	}
	return parsed, ecKey, nil
}
